//! The fuzz targets, and what libFuzzer needs besides.

pub mod targets;

/// libFuzzer's panic hook aborts, also on panics that [`simclr_data::guard`] turns into errors of a file. Those that leave a target abort
/// anyway.
pub fn allow_guarded_panics() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !simclr_data::guard::is_guarded() {
            abort(panic);
        }
    }));
}
