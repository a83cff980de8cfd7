use tch as _; use torch_sys as _;
