//! JPEG, by one of three decoders.

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use mozjpeg::{DctMethod, Decompress};
use zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};
use zune_jpeg::JpegDecoder;

use super::{
    Jpeg, check_size,
    raster::{Raster, Values},
};

pub(super) fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// Straight to grey or RGB. Size and orientation are read by `zune-jpeg` for both decoders; it converts CMYK and YCCK, which
/// libjpeg refuses.
// zune 9, jpeg-decoder 24, turbojpeg 7-9 us per 32 px JPEG; 0.73, 0.94, 0.56 ms at 500x375. turbojpeg needs cmake and nasm;
// mozjpeg is the same decoder built by a C compiler alone, without SIMD.
pub(super) fn decode(bytes: &[u8], channels: usize, jpeg: Jpeg) -> Result<Raster, String> {
    if !jpeg_is_whole(bytes) {
        return Err("the JPEG data is cut short".into());
    }
    let options = DecoderOptions::default().set_max_width(1 << 16).set_max_height(1 << 16);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| format!("not a readable JPEG: {error}"))?;
    let (width, height) = decoder.dimensions().ok_or("a JPEG without dimensions")?;
    check_size(width as u64, height as u64)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let want = if grey && channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    if jpeg != Jpeg::Zune && matches!(decoder.input_colorspace(), Some(ColorSpace::CMYK | ColorSpace::YCCK)) {
        return Err(
            "the JPEG is CMYK, which libjpeg does not convert to RGB; transform.jpeg = \"zune\" does".into(),
        );
    }
    let orientation = decoder.exif().and_then(|chunk| Orientation::from_exif_chunk(chunk));
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(want));
    let data = match jpeg {
        Jpeg::Zune => decoder.decode().map_err(|error| error.to_string()),
        Jpeg::Libjpeg => by_libjpeg(bytes, want, DctMethod::IntegerSlow),
        Jpeg::LibjpegFast => by_libjpeg(bytes, want, DctMethod::IntegerFast),
    };
    let data = data.map_err(|error| format!("damaged JPEG: {error}"))?;
    let found = if want == ColorSpace::Luma { 1 } else { 3 };
    if data.len() != width * height * found {
        return Err(format!("damaged JPEG: {} bytes for {width}x{height} pixels", data.len()));
    }
    Ok(Raster::new((width, height), found, Values::U8(data), "uint8").upright(orientation))
}

/// Pixels of a whole JPEG, chroma upsampled by the triangle filter ("fancy upsampling").
fn by_libjpeg(bytes: &[u8], want: ColorSpace, method: DctMethod) -> Result<Vec<u8>, String> {
    let decode = || {
        let mut decoder = Decompress::new_mem(bytes)?;
        decoder.dct_method(method);
        decoder.do_fancy_upsampling(true);
        let mut rows = if want == ColorSpace::Luma { decoder.grayscale()? } else { decoder.rgb()? };
        let pixels = rows.read_scanlines::<u8>()?;
        rows.finish()?;
        Ok::<_, std::io::Error>(pixels)
    };
    // The crate reports errors of libjpeg by unwinding with their message, without the panic hook.
    let found = catch_unwind(AssertUnwindSafe(decode)).map_err(|cause| {
        cause.downcast_ref::<String>().cloned().unwrap_or_else(|| "libjpeg gave up without a message".into())
    })?;
    found.map_err(|error| error.to_string())
}

/// Whether the end-of-image marker comes after the start of the pixel data; a thumbnail inside the metadata has one too.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4).and_then(|b| b.first_chunk::<4>()) {
        if marker == 0xda {
            return bytes[at..].windows(2).rev().any(|pair| pair == [0xff, 0xd9]);
        }
        at += if marker == 0xff { 1 } else { 2 + usize::from(u16::from_be_bytes([high, low])) };
    }
    false
}
