//! libjpeg, with warnings that imply lost pixels as errors.

use std::{
    ffi::c_int,
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use mozjpeg::{ColorSpace, DctMethod, Format, decompress::DecompressBuilder};
use mozjpeg_sys::{
    JWRN_HIT_MARKER, JWRN_HUFF_BAD_CODE, JWRN_JPEG_EOF, jpeg_common_struct, jpeg_error_mgr, jpeg_std_error,
};

pub(super) enum Failure {
    /// Pixel data are missing or wrong.
    Damage(String),
    /// Unsupported file, or out of memory.
    Other(String),
}

impl Failure {
    pub fn reason(self) -> String {
        match self {
            Self::Damage(reason) | Self::Other(reason) => reason,
        }
    }
}

/// Decodes with the triangle filter for chroma ("fancy upsampling").
pub(super) fn decode(bytes: &[u8], target: ColorSpace, method: DctMethod) -> Result<Vec<u8>, Failure> {
    guarded(|| {
        let mut decoder = DecompressBuilder::new().with_err(errors()).from_mem(bytes)?;
        decoder.dct_method(method);
        decoder.do_fancy_upsampling(true);
        let mut rows = decoder.to_colorspace(target)?;
        let pixels = rows.read_scanlines::<u8>()?;
        rows.finish()?;
        Ok(pixels)
    })
}

/// Reads all codes of a JPEG. Output at an eighth of the size skips most other work.
pub(super) fn check(bytes: &[u8]) -> Result<(), Failure> {
    guarded(|| {
        let mut decoder = DecompressBuilder::new().with_err(errors()).from_mem(bytes)?;
        decoder.scale(1);
        let (Format::RGB(mut rows) | Format::Gray(mut rows) | Format::CMYK(mut rows)) = decoder.image()?;
        rows.read_scanlines::<u8>()?;
        rows.finish()
    })
}

/// The handlers below leave libjpeg by unwinding, without the panic hook.
fn guarded<T>(work: impl FnOnce() -> io::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| Failure::Other(error.to_string())),
        Err(cause) => Err(match cause.downcast::<Failure>() {
            Ok(failure) => *failure,
            Err(_) => Failure::Other("libjpeg gave up without a message".into()),
        }),
    }
}

fn errors() -> jpeg_error_mgr {
    // SAFETY: all fields are numbers, pointers or optional functions, for which zeros are valid.
    let mut errors = unsafe { mem::zeroed::<jpeg_error_mgr>() };
    // SAFETY: it fills the struct with static functions and tables, and keeps no pointer to it.
    unsafe { jpeg_std_error(&mut errors) };
    errors.error_exit = Some(on_error);
    errors.emit_message = Some(on_message);
    errors
}

#[cold]
extern "C-unwind" fn on_error(cinfo: &mut jpeg_common_struct) {
    type Format = unsafe extern "C-unwind" fn(&mut jpeg_common_struct, &mut [u8; 80]);
    type Declared = unsafe extern "C-unwind" fn(&mut jpeg_common_struct, &[u8; 80]);
    let mut text = [0; 80];
    // SAFETY: libjpeg calls this with its error manager in place.
    if let Some(format) = unsafe { (*cinfo.err).format_message } {
        // SAFETY: the function writes at most 80 bytes, including the final zero; the declaration lacks the `mut`.
        unsafe { mem::transmute::<Declared, Format>(format)(cinfo, &mut text) };
    }
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let reason = format!("libjpeg fatal error: {}", String::from_utf8_lossy(text));
    resume_unwind(Box::new(Failure::Other(reason)));
}

/// Warnings have negative levels. These imply lost pixels:
/// - `HIT_MARKER`: a marker instead of codes, for which libjpeg fills in zeros; also follows lost restart markers.
/// - `HUFF_BAD_CODE`: an invalid code, which libjpeg replaces by zero.
/// - `JPEG_EOF`: the file ends before its end marker.
///
/// Ignored are warnings on metadata (`ADOBE_XFORM`, `JFIF_MAJOR`, `BOGUS_ICC`), on unused header values (`NOT_SEQUENTIAL`), on the
/// order of scans (`BOGUS_PROGRESSION`; [`super::layout`] checks that none is missing), `MUST_RESYNC`, which precedes a
/// `HIT_MARKER` if pixels are lost, and `EXTRANEOUS_DATA`, bytes between the last code and a marker, with which cameras and MJPEG
/// hardware pad; [`super`] handles zeros that replaced data.
extern "C-unwind" fn on_message(cinfo: &mut jpeg_common_struct, level: c_int) {
    if level >= 0 {
        return;
    }
    // SAFETY: libjpeg calls this with its error manager in place.
    let reason = match unsafe { (*cinfo.err).msg_code } {
        JWRN_HIT_MARKER | JWRN_JPEG_EOF => "its pixel data end too early",
        JWRN_HUFF_BAD_CODE => "its pixel data have a code that does not exist",
        _ => return,
    };
    resume_unwind(Box::new(Failure::Damage(reason.into())));
}
