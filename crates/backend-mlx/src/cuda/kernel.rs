//! mlx-c's custom CUDA kernels, which mlx-rs does not wrap.

use std::ffi::{CStr, CString, c_int};

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, Stream};

type Result<T> = std::result::Result<T, Exception>;

fn checked(status: c_int, what: &str) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(Exception::custom(format!("MLX refused {what}"))),
    }
}

/// An axis' length as MLX takes it: what is no `i32` has been refused before.
fn axis(n: usize) -> c_int {
    c_int::try_from(n).unwrap_or(c_int::MAX)
}

/// A source without comments and indentation: MLX copies it at every call.
fn bare(source: &str) -> String {
    let code = |line: &str| {
        line.split("//")
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let lines: Vec<String> = source.lines().map(code).filter(|l| !l.is_empty()).collect();
    lines.join("\n")
}

/// A kernel out of the body of a function.
pub(super) struct Kernel {
    raw: mlx_sys::mlx_fast_cuda_kernel,
    stream: Stream,
}

impl Kernel {
    /// `contiguous` inputs are copied where they are not.
    pub fn new(
        name: &CStr,
        inputs: &[&CStr],
        outputs: &[&CStr],
        source: &str,
        contiguous: bool,
    ) -> Result<Self> {
        let source = CString::new(bare(source)).map_err(|e| Exception::custom(e.to_string()))?;
        let (inputs, outputs) = (Names::new(inputs)?, Names::new(outputs)?);
        // SAFETY: all pointers live beyond the call, which copies what it keeps.
        let raw = unsafe {
            mlx_sys::mlx_fast_cuda_kernel_new(
                name.as_ptr(),
                inputs.0,
                outputs.0,
                source.as_ptr(),
                c"".as_ptr(),
                contiguous,
                0,
            )
        };
        match raw.ctx.is_null() {
            true => Err(Exception::custom("MLX made no CUDA kernel")),
            false => Ok(Kernel {
                raw,
                stream: Stream::new(),
            }),
        }
    }

    /// Adds the kernel to the graph. It must stay within the arrays of the inputs, as their shapes and
    /// types say, and write all of its outputs.
    pub fn apply<const N: usize>(&self, config: &Config, inputs: &[&Array]) -> Result<[Array; N]> {
        let raw: Vec<_> = inputs.iter().map(|a| a.as_ptr()).collect();
        // SAFETY: the arrays live beyond the call; both vectors are freed here, and each array that is
        // taken out has a handle of its own.
        unsafe {
            let inputs = mlx_sys::mlx_vector_array_new_data(raw.as_ptr(), raw.len());
            let mut outputs = mlx_sys::mlx_vector_array_new();
            let status = mlx_sys::mlx_fast_cuda_kernel_apply(
                &mut outputs,
                self.raw,
                inputs,
                config.0,
                self.stream.as_ptr(),
            );
            let mut taken = Vec::with_capacity(N);
            let mut result = checked(status, "a CUDA kernel");
            for i in 0..N {
                if result.is_ok() {
                    let mut one = mlx_sys::mlx_array_new();
                    let status = mlx_sys::mlx_vector_array_get(&mut one, outputs, i);
                    taken.push(Array::from_ptr(one));
                    result = checked(status, "a CUDA kernel's output");
                }
            }
            mlx_sys::mlx_vector_array_free(inputs);
            mlx_sys::mlx_vector_array_free(outputs);
            result?;
            let missing = |_| Exception::custom("a CUDA kernel without outputs");
            taken.try_into().map_err(missing)
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used any more.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_free(self.raw) }
    }
}

/// How a kernel is launched; can be used again.
pub(super) struct Config(mlx_sys::mlx_fast_cuda_kernel_config);

impl Config {
    /// `threads` in all, in blocks of `block`.
    pub fn new(threads: [usize; 3], block: [usize; 3]) -> Result<Self> {
        let ([x, y, z], [bx, by, bz]) = (threads.map(axis), block.map(axis));
        // SAFETY: the configuration is freed on drop.
        unsafe {
            let config = Config(mlx_sys::mlx_fast_cuda_kernel_config_new());
            let grid = mlx_sys::mlx_fast_cuda_kernel_config_set_grid(config.0, x, y, z);
            checked(grid, "a grid")?;
            let block = mlx_sys::mlx_fast_cuda_kernel_config_set_thread_group(config.0, bx, by, bz);
            checked(block, "a block")?;
            Ok(config)
        }
    }

    pub fn output(self, shape: &[usize], dtype: Dtype) -> Result<Self> {
        let shape: Vec<c_int> = shape.iter().map(|&n| axis(n)).collect();
        // SAFETY: the shape is copied.
        let status = unsafe {
            mlx_sys::mlx_fast_cuda_kernel_config_add_output_arg(
                self.0,
                shape.as_ptr(),
                shape.len(),
                dtype.into(),
            )
        };
        checked(status, "an output").map(|()| self)
    }

    pub fn dtype(self, name: &CStr, value: Dtype) -> Result<Self> {
        // SAFETY: the name is copied.
        let status = unsafe {
            mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_dtype(
                self.0,
                name.as_ptr(),
                value.into(),
            )
        };
        checked(status, "a type").map(|()| self)
    }

    pub fn int(self, name: &CStr, value: usize) -> Result<Self> {
        // SAFETY: the name is copied.
        let status = unsafe {
            mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_int(
                self.0,
                name.as_ptr(),
                axis(value),
            )
        };
        checked(status, "a number").map(|()| self)
    }

    pub fn bool(self, name: &CStr, value: bool) -> Result<Self> {
        // SAFETY: the name is copied.
        let status = unsafe {
            mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_bool(self.0, name.as_ptr(), value)
        };
        checked(status, "a choice").map(|()| self)
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used any more.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_config_free(self.0) }
    }
}

/// A list of names for a call.
struct Names(mlx_sys::mlx_vector_string);

impl Names {
    fn new(names: &[&CStr]) -> Result<Self> {
        // SAFETY: the names are copied; the list is freed on drop.
        unsafe {
            let list = Names(mlx_sys::mlx_vector_string_new());
            for name in names {
                let status = mlx_sys::mlx_vector_string_append_value(list.0, name.as_ptr());
                checked(status, "a name")?;
            }
            Ok(list)
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used any more.
        unsafe {
            mlx_sys::mlx_vector_string_free(self.0);
        }
    }
}
