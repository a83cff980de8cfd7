//! Calls into parsers of other crates. A file damaged in a way that its parser did not expect makes it panic; here that becomes an
//! error of the file.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread will be caught, so that a panic hook has nothing to report.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// The outcome of `work`; if it panics, the error that `failed` makes of the reason.
pub fn guarded<T, E>(work: impl FnOnce() -> Result<T, E>, failed: impl FnOnce(String) -> E) -> Result<T, E> {
    let before = GUARDED.replace(true);
    // Parsers own what they change; nothing of theirs is used after a panic.
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    outcome.unwrap_or_else(|panic| Err(failed(format!("its parser failed: {}", message(&*panic)))))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_errors_and_the_guard_ends() {
        let fails = |text: Option<&str>| {
            guarded(
                || match text {
                    Some(text) => panic!("{text} {}", is_guarded()),
                    None => Ok(is_guarded()),
                },
                |reason| reason,
            )
        };
        assert_eq!(fails(None), Ok(true));
        assert_eq!(fails(Some("division by zero")), Err("its parser failed: division by zero true".into()));
        let nested: Result<bool, String> =
            guarded(|| fails(Some("inner")).or(Ok(is_guarded())), |reason| reason);
        assert_eq!(nested, Ok(true), "the outer guard is still on");
        assert!(!is_guarded());
    }
}
