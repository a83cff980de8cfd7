// Error handling of the C interface. No exception leaves this crate's C++: a function that can fail returns nullptr on success,
// else a message that the caller frees with simclr_free.
#pragma once

#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace simclr {

inline char* message(const std::string& text) {
    char* copy = static_cast<char*>(std::malloc(text.size() + 1));
    if (copy == nullptr) std::abort();  // out of memory
    std::memcpy(copy, text.c_str(), text.size() + 1);
    return copy;
}

// c10::Error's what() contains a C++ stack trace; only its first line is kept. Errors of the TorchScript interpreter have the
// cause in their last line.
inline std::string first_line(const char* what) {
    std::string text(what);
    const std::string interpreter = "The following operation failed in the TorchScript interpreter";
    if (text.compare(0, interpreter.size(), interpreter) == 0) {
        size_t cause = text.rfind("Error: ");
        if (cause != std::string::npos) text = text.substr(cause + 7);
    }
    return text.substr(0, text.find('\n'));
}

template <typename F>
char* guarded(F f) {
    try {
        f();
        return nullptr;
    } catch (const c10::Error& error) {
        return message(first_line(error.what_without_backtrace()));
    } catch (const std::exception& error) {
        return message(first_line(error.what()));
    } catch (...) {
        return message("unknown C++ exception");
    }
}

template <typename F>
char* text_or_null(F f) {
    try {
        return message(f());
    } catch (...) {
        return nullptr;
    }
}

}  // namespace simclr
