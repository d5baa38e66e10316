//! mlx-c's custom CUDA kernels, which mlx-rs does not wrap.

use std::cell::OnceCell;
use std::ffi::{CStr, CString, c_int};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, Stream};

use super::compile::{self, Compiled};

type Result<T> = std::result::Result<T, Exception>;

fn checked(status: c_int, what: &str) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => Err(Exception::custom(format!("MLX refused {what}"))),
    }
}

fn text(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|e| Exception::custom(e.to_string()))
}

/// An axis' length as MLX takes it: what is no `i32` has been refused before.
fn axis(n: usize) -> c_int {
    c_int::try_from(n).unwrap_or(c_int::MAX)
}

/// An array that a kernel is given: its name, and its elements' type in CUDA.
pub(super) type Argument = (&'static CStr, &'static str);

/// A kernel as the body of a function.
pub(super) struct Source {
    /// The beginning of its name.
    pub what: &'static str,
    pub inputs: Vec<Argument>,
    pub outputs: Vec<Argument>,
    pub body: String,
    /// Whether inputs are copied that are not contiguous.
    pub contiguous: bool,
}

impl Source {
    /// The body without comments and indentation.
    fn bare(&self) -> String {
        let code = |line: &str| {
            line.split("//")
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let lines = self.body.lines().map(code).filter(|l| !l.is_empty());
        lines.collect::<Vec<_>>().join("\n")
    }

    /// What MLX adds to the arguments of its functions: an input's shape and strides, where the body has
    /// their names.
    fn extents(body: &str, input: &CStr) -> impl Iterator<Item = (&'static str, String)> {
        let input = input.to_string_lossy();
        let both = [("Shape", "shape"), ("Strides", "strides")];
        let named = both.map(|(kind, suffix)| (kind, format!("{input}_{suffix}")));
        named.into_iter().filter(|(_, name)| body.contains(name))
    }

    /// The function `name` as MLX would make it, with as little around it as the kernels need: MLX includes
    /// headers that take more than a second to read.
    pub fn function(&self, name: &str) -> String {
        let body = self.bare();
        let mut arguments = Vec::new();
        for (input, of) in &self.inputs {
            arguments.push(format!("const {of}* {}", input.to_string_lossy()));
            for (kind, name) in Self::extents(&body, input) {
                arguments.push(format!("const __grid_constant__ {kind} {name}"));
            }
        }
        for (output, of) in &self.outputs {
            arguments.push(format!("{of}* {}", output.to_string_lossy()));
        }
        format!(
            "{}\nextern \"C\" __global__ void {name}({}) {{\n{body}\n}}\n",
            include_str!("head.cu"),
            arguments.join(", ")
        )
    }

    /// What MLX makes of a body, to the letter: it names what it compiles by that.
    fn in_mlx(&self, function: &str, body: &str) -> String {
        let mut text = format!("{MLX_HEAD}__global__ void {function}(\n");
        for (input, of) in &self.inputs {
            text += &format!("    const {of}* {},\n", input.to_string_lossy());
            for (kind, name) in Self::extents(body, input) {
                text += &format!("    const __grid_constant__ {kind} {name},\n");
            }
        }
        let outputs = self.outputs.iter();
        let outputs = outputs.map(|(output, of)| format!("    {of}* {}", output.to_string_lossy()));
        text += &outputs.collect::<Vec<_>>().join(",\n");
        text + ") {\n" + body + MLX_TAIL
    }

    /// Stands for the body of a function that is compiled already: MLX reads all of it at every call.
    fn stand_in(&self, instead: &str) -> String {
        let body = self.bare();
        let inputs = self.inputs.iter();
        let names = inputs.flat_map(|(input, _)| Self::extents(&body, input));
        let names: Vec<String> = names.map(|(_, name)| name).collect();
        format!("{instead} // {}", names.join(" "))
    }

    /// A name of its own, as what is compiled outlives the process.
    fn name(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (self.function(""), compile::settings()).hash(&mut hasher);
        format!("biplane_{}_{:016x}", self.what, hasher.finish())
    }
}

/// As a body it is never compiled.
const GONE: &str = "#error a compiled kernel was removed while this program ran";

const MLX_HEAD: &str = "\n#include \"mlx/backend/cuda/device/utils.cuh\"\n\n#include <cooperative_groups.h>\n\n\
    namespace mlx::core::cu {\n\nnamespace cg = cooperative_groups;\n\n";

const MLX_TAIL: &str = "\n}\n\n} // namespace mlx::core::cu\n";

/// Whether MLX finds what is compiled beside it, and calls it as it would call its own.
fn finds_ours() -> Result<bool> {
    let elements = [
        (c"x", "uint32_t"),
        (c"h", "__half"),
        (c"b", "__nv_bfloat16"),
        (c"f", "float"),
        (c"i", "int32_t"),
    ];
    let source = Source {
        what: "probe",
        inputs: elements.to_vec(),
        outputs: vec![(c"y", "uint32_t"), (c"z", "float")],
        body: "y[0] = x[0] + x_shape[1] + b_strides[0];\n\
               z[0] = float(h[0]) + float(b[0]) + f[0] + float(i[0]);"
            .into(),
        contiguous: false,
    };
    let name = source.name();
    let (function, body) = (compile::function(&name), source.stand_in("y[0] = 0;"));
    let module = compile::module(&function, &source.in_mlx(&function, &body));
    if !compile::at_once(&module, &function, &source.function(&function)) {
        return Ok(false);
    }
    let handle = Handle::new(&text(name)?, &source, body)?;
    let one = Array::from_slice(&[1.0f32; 6], &[2, 3]);
    let inputs = [
        one.as_dtype(Dtype::Uint32)?,
        one.as_dtype(Dtype::Float16)?,
        one.as_dtype(Dtype::Bfloat16)?,
        one.clone(),
        one.as_dtype(Dtype::Int32)?,
    ];
    let config = Config::new([1, 1, 1], [1, 1, 1])?
        .output(&[1], Dtype::Uint32)?
        .output(&[1], Dtype::Float32)?;
    let inputs: Vec<&Array> = inputs.iter().collect();
    let [y, z] = handle.apply(&Stream::new(), &config, &inputs)?;
    let both = y.as_dtype(Dtype::Float32)?.add(z)?;
    Ok(both.as_slice::<f32>() == [11.0])
}

fn trusts_ours() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = finds_ours().unwrap_or_else(|e| {
            tracing::debug!("{e}");
            false
        });
        if !found {
            tracing::debug!("MLX compiles all kernels itself: it does not find other ones");
        }
        found
    })
}

/// A kernel that can be called.
pub(super) struct Kernel {
    source: Source,
    name: CString,
    compiled: Compiled,
    /// With the body, as long as MLX may have to compile it.
    whole: OnceCell<Handle>,
    short: OnceCell<Handle>,
    stream: Stream,
}

impl Kernel {
    pub fn new(source: Source) -> Result<Self> {
        let name = source.name();
        let function = compile::function(&name);
        let compiled = match trusts_ours() {
            false => Compiled::default(),
            true => compile::begin(&function, || {
                let bodies = [source.stand_in(GONE), source.bare()];
                let module =
                    |body: &String| compile::module(&function, &source.in_mlx(&function, body));
                (
                    bodies.iter().map(module).collect(),
                    source.function(&function),
                )
            }),
        };
        Ok(Kernel {
            name: text(name)?,
            compiled,
            source,
            whole: OnceCell::new(),
            short: OnceCell::new(),
            stream: Stream::new(),
        })
    }

    fn handle(&self) -> Result<&Handle> {
        let place = match self.compiled.is_there() {
            true => &self.short,
            false => &self.whole,
        };
        if let Some(handle) = place.get() {
            return Ok(handle);
        }
        let body = match self.compiled.is_there() {
            true => self.source.stand_in(GONE),
            false => self.source.bare(),
        };
        let handle = Handle::new(&self.name, &self.source, body)?;
        Ok(place.get_or_init(|| handle))
    }

    /// Adds the kernel to the graph. It must stay within the arrays of the inputs, as their shapes and
    /// types say, and write all of its outputs.
    pub fn apply<const N: usize>(&self, config: &Config, inputs: &[&Array]) -> Result<[Array; N]> {
        self.handle()?.apply(&self.stream, config, inputs)
    }
}

/// A kernel of MLX.
struct Handle(mlx_sys::mlx_fast_cuda_kernel);

impl Handle {
    fn new(name: &CStr, source: &Source, body: String) -> Result<Self> {
        let body = text(body)?;
        let (inputs, outputs) = (Names::new(&source.inputs)?, Names::new(&source.outputs)?);
        // SAFETY: all pointers live beyond the call, which copies what it keeps.
        let raw = unsafe {
            mlx_sys::mlx_fast_cuda_kernel_new(
                name.as_ptr(),
                inputs.0,
                outputs.0,
                body.as_ptr(),
                c"".as_ptr(),
                source.contiguous,
                0,
            )
        };
        match raw.ctx.is_null() {
            true => Err(Exception::custom("MLX made no CUDA kernel")),
            false => Ok(Handle(raw)),
        }
    }

    fn apply<const N: usize>(
        &self,
        stream: &Stream,
        config: &Config,
        inputs: &[&Array],
    ) -> Result<[Array; N]> {
        let raw: Vec<_> = inputs.iter().map(|a| a.as_ptr()).collect();
        // SAFETY: the arrays live beyond the call; both vectors are freed here, and each array that is
        // taken out has a handle of its own.
        unsafe {
            let inputs = mlx_sys::mlx_vector_array_new_data(raw.as_ptr(), raw.len());
            let mut outputs = mlx_sys::mlx_vector_array_new();
            let status = mlx_sys::mlx_fast_cuda_kernel_apply(
                &mut outputs,
                self.0,
                inputs,
                config.0,
                stream.as_ptr(),
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

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used any more.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_free(self.0) }
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
    fn new(arguments: &[Argument]) -> Result<Self> {
        // SAFETY: the names are copied; the list is freed on drop.
        unsafe {
            let list = Names(mlx_sys::mlx_vector_string_new());
            for (name, _) in arguments {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The name that MLX 0.32.2 was seen to give a kernel.
    #[test]
    fn modules_are_named_as_mlx_does() {
        let t = "__nv_bfloat16";
        let source = Source {
            what: "rows",
            inputs: vec![
                (c"ids", "uint32_t"),
                (c"codes", "uint32_t"),
                (c"scales", t),
                (c"biases", t),
            ],
            outputs: vec![(c"y", t)],
            body: String::new(),
            contiguous: true,
        };
        let function = compile::function("biplane_rows_90c06b4d648eb0ce");
        let body = "#error a compiled kernel was removed while this program ran: codes_shape";
        let module = compile::module(&function, &source.in_mlx(&function, body));
        assert_eq!(
            module,
            "custom_kernel_biplane_rows_90c06b4d648eb0ce_c8637f1caa3263b2"
        );
    }

    #[test]
    fn a_stand_in_has_the_arguments_of_its_body() {
        let source = Source {
            what: "any",
            inputs: vec![(c"k", "float"), (c"mask", "float"), (c"q", "float")],
            outputs: vec![(c"y", "float")],
            body: "y[0] = mask_strides[0] + q_shape[1]; // k_shape".into(),
            contiguous: true,
        };
        let arguments = |body: &str| {
            let text = source.in_mlx("f", body);
            text.split(") {").next().unwrap_or_default().to_owned()
        };
        assert_eq!(arguments(&source.stand_in(GONE)), arguments(&source.bare()));
        assert!(arguments(&source.bare()).contains("Strides k_strides"));
    }
}
