//! Kernels compiled beside MLX. MLX compiles a kernel of ours when it first meets it, for two seconds
//! most of which are headers, one after the other, and keeps none. Before it compiles anything it looks
//! into a folder, where it keeps its own kernels: ours are put there, compiled with few headers, all
//! kernels of a step at once, and stay for other processes. Where that cannot be, MLX compiles as ever.

use std::collections::HashMap;
use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::{fs, io, thread};

/// Whether a kernel lies in the folder.
#[derive(Clone, Default)]
pub(super) struct Compiled(Arc<OnceLock<()>>);

impl Compiled {
    pub fn is_there(&self) -> bool {
        self.0.get().is_some()
    }
}

/// What else than its source makes a kernel.
pub(super) fn settings() -> impl Hash {
    Compiler::here().map(|compiler| &compiler.settings)
}

/// MLX's name of the function of a kernel.
pub(super) fn function(kernel: &str) -> String {
    format!("custom_kernel_{kernel}")
}

/// MLX's name of the module that has a function with the source `text`.
pub(super) fn module(function: &str, text: &str) -> String {
    format!("{function}_{:x}", murmur(text.as_bytes()))
}

/// `std::hash` of a string in libstdc++: MurmurHash64A.
fn murmur(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0xc6a4_a793_5bd1_e995;
    let mixed = |v: u64| v ^ (v >> 47);
    let mut hash = 0xc70f_6907 ^ (bytes.len() as u64).wrapping_mul(FACTOR);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word).wrapping_mul(FACTOR);
        hash = (hash ^ mixed(word).wrapping_mul(FACTOR)).wrapping_mul(FACTOR);
    }
    if !rest.is_empty() {
        let mut word = [0; 8];
        word.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(FACTOR);
    }
    mixed(mixed(hash).wrapping_mul(FACTOR))
}

/// Compiles the source of a function for a module, unless that is done; whether it is there.
pub(super) fn at_once(module: &str, function: &str, source: &str) -> bool {
    let Some(compiler) = Compiler::here() else {
        return false;
    };
    let modules = [module.to_owned()];
    let compile = || {
        let made = compiler.compile(&modules, function, source);
        made.inspect_err(|e| tracing::debug!("{e}")).is_ok()
    };
    compiler.has(&modules) || compile()
}

/// Begins to compile a function, unless that is done: `what` gives the modules it is for, and its source.
pub(super) fn begin(function: &str, what: impl FnOnce() -> (Vec<String>, String)) -> Compiled {
    static KNOWN: Mutex<Option<HashMap<String, Compiled>>> = Mutex::new(None);
    let Some(compiler) = Compiler::here() else {
        return Compiled::default();
    };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(compiled) = known.get(function) {
        return compiled.clone();
    }
    let compiled = Compiled::default();
    known.insert(function.to_owned(), compiled.clone());
    let (modules, source) = what();
    if compiler.has(&modules) {
        let _ = compiled.0.set(());
        return compiled;
    }
    let (function, done) = (function.to_owned(), compiled.clone());
    let compile = move || match compiler.compile(&modules, &function, &source) {
        Ok(()) => {
            let _ = done.0.set(());
        }
        Err(error) => tracing::debug!("MLX compiles {function} itself: {error}"),
    };
    match thread::Builder::new()
        .name("biplane-nvrtc".into())
        .spawn(compile)
    {
        Ok(thread) => under_way().push(thread),
        Err(error) => tracing::debug!("{error}"),
    }
    compiled
}

fn under_way() -> std::sync::MutexGuard<'static, Vec<JoinHandle<()>>> {
    static UNDER_WAY: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for all kernels: MLX would compile those that are not there yet once more.
pub(crate) fn finish() {
    let threads = std::mem::take(&mut *under_way());
    for thread in threads {
        if thread.join().is_err() {
            tracing::debug!("a thread that compiles failed");
        }
    }
}

/// NVIDIA's compiler, which MLX is linked with, for the GPU in use.
struct Compiler {
    nvrtc: Nvrtc,
    options: Vec<CString>,
    folder: PathBuf,
    settings: String,
}

impl Compiler {
    fn here() -> Option<&'static Compiler> {
        static HERE: OnceLock<Option<Compiler>> = OnceLock::new();
        HERE.get_or_init(|| {
            let found = Nvrtc::find().zip(gpu()).zip(mlx_version());
            let compiler = found.map(|((nvrtc, gpu), mlx)| Compiler::new(nvrtc, gpu, &mlx));
            if compiler.is_none() {
                tracing::debug!(
                    "MLX compiles all kernels itself: this process has no NVRTC or no GPU"
                );
            }
            compiler
        })
        .as_ref()
    }

    fn new(nvrtc: Nvrtc, [major, minor]: [c_int; 2], mlx: &str) -> Self {
        let options = [
            format!("--gpu-architecture=sm_{major}{minor}"),
            format!("--include-path={}/include", cuda_home().display()),
        ];
        let settings = format!("MLX {mlx}, NVRTC {:?}, {}", nvrtc.version(), options[0]);
        // Where MLX looks.
        let folder = match std::env::var_os("MLX_PTX_CACHE_DIR") {
            Some(folder) => folder.into(),
            None => std::env::temp_dir().join("mlx").join(mlx).join("ptx"),
        };
        Compiler {
            nvrtc,
            options: options
                .into_iter()
                .filter_map(|o| CString::new(o).ok())
                .collect(),
            folder,
            settings,
        }
    }

    fn path(&self, module: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{module}.{kind}"))
    }

    fn has(&self, modules: &[String]) -> bool {
        modules
            .iter()
            .all(|module| self.path(module, "ptx").exists())
    }

    /// Puts the only function of a source into the folder.
    fn compile(&self, modules: &[String], function: &str, source: &str) -> io::Result<()> {
        let compiled = self.nvrtc.compile(source, &self.options)?;
        fs::create_dir_all(&self.folder)?;
        // MLX looks functions up by their name in its own sources, and calls them by the compiled one. It
        // asks for the code first: that comes last.
        let names = format!("mlx::core::cu::{function}\t{function}\n");
        for module in modules {
            self.put(&self.path(module, "txt"), names.as_bytes())?;
            self.put(&self.path(module, "ptx"), &compiled)?;
        }
        Ok(())
    }

    /// Writes a file at once: other processes may read and write it.
    fn put(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut part: OsString = path.as_os_str().to_owned();
        part.push(format!(".{}.part", std::process::id()));
        let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written
    }
}

/// Where CUDA's headers are, as MLX looks for them.
fn cuda_home() -> PathBuf {
    let named = ["CUDA_HOME", "CUDA_PATH"].iter().find_map(std::env::var_os);
    named.map_or("/usr/local/cuda".into(), PathBuf::from)
}

fn mlx_version() -> Option<String> {
    // SAFETY: the string is copied while it lives, and freed.
    unsafe {
        let mut version = mlx_sys::mlx_string_new();
        let status = mlx_sys::mlx_version(&mut version);
        let text = mlx_sys::mlx_string_data(version);
        let copied = (status == 0 && !text.is_null()).then(|| {
            std::ffi::CStr::from_ptr(text)
                .to_string_lossy()
                .into_owned()
        });
        mlx_sys::mlx_string_free(version);
        copied
    }
}

/// A function of a library that this process has loaded already.
#[cfg(target_os = "linux")]
fn symbol(name: &std::ffi::CStr) -> Option<*mut c_void> {
    unsafe extern "C" {
        fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    // SAFETY: null stands for all libraries; the name is a string of C.
    let found = unsafe { dlsym(std::ptr::null_mut(), name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

#[cfg(not(target_os = "linux"))]
fn symbol(_: &std::ffi::CStr) -> Option<*mut c_void> {
    None
}

/// Functions of a library, by their names there.
macro_rules! functions {
    ($library:ident { $($name:ident: fn($($argument:ty),*)),* $(,)? }) => {
        #[allow(non_snake_case)]
        #[derive(Clone, Copy)]
        struct $library { $($name: unsafe extern "C" fn($($argument),*) -> c_int),* }

        impl $library {
            fn find() -> Option<Self> {
                Some($library {
                    $($name: {
                        let name = CString::new(stringify!($name)).ok()?;
                        // SAFETY: the library's header says this of the function.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> c_int>(
                                symbol(&name)?,
                            )
                        }
                    }),*
                })
            }
        }
    };
}

type Program = *mut c_void;

functions!(Nvrtc {
    nvrtcVersion: fn(*mut c_int, *mut c_int),
    nvrtcCreateProgram: fn(
        *mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
    ),
    nvrtcCompileProgram: fn(Program, c_int, *const *const c_char),
    nvrtcGetProgramLogSize: fn(Program, *mut usize),
    nvrtcGetProgramLog: fn(Program, *mut c_char),
    nvrtcGetCUBINSize: fn(Program, *mut usize),
    nvrtcGetCUBIN: fn(Program, *mut c_char),
    nvrtcDestroyProgram: fn(*mut Program),
});

functions!(Driver {
    cuInit: fn(std::ffi::c_uint),
    cuDeviceGet: fn(*mut c_int, c_int),
    cuDeviceGetAttribute: fn(*mut c_int, c_int, c_int),
});

/// The GPU's compute capability.
fn gpu() -> Option<[c_int; 2]> {
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    let driver = Driver::find()?;
    let mut device = 0;
    let mut capability = [0; 2];
    // SAFETY: all pointers are to numbers that live beyond the calls.
    let results = unsafe {
        [
            (driver.cuInit)(0),
            (driver.cuDeviceGet)(&mut device, 0),
            (driver.cuDeviceGetAttribute)(&mut capability[0], MAJOR, device),
            (driver.cuDeviceGetAttribute)(&mut capability[1], MINOR, device),
        ]
    };
    (results == [0; 4] && capability[0] > 0).then_some(capability)
}

impl Nvrtc {
    fn version(&self) -> [c_int; 2] {
        let [mut major, mut minor] = [0; 2];
        // SAFETY: both numbers live beyond the call.
        unsafe { (self.nvrtcVersion)(&mut major, &mut minor) };
        [major, minor]
    }

    /// A source's code for the GPU.
    fn compile(&self, source: &str, options: &[CString]) -> io::Result<Vec<u8>> {
        let source = CString::new(source)?;
        let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        let failed = |what: &str| Err(io::Error::other(format!("NVRTC {what}")));
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: strings and options live beyond the calls; buffers have the sizes that were asked for; the
        // program is destroyed once.
        unsafe {
            let no_headers = std::ptr::null();
            let name = c"kernel.cu".as_ptr();
            let create = self.nvrtcCreateProgram;
            if create(
                &mut program,
                source.as_ptr(),
                name,
                0,
                no_headers,
                no_headers,
            ) != 0
            {
                return failed("takes no program");
            }
            let count = c_int::try_from(options.len()).unwrap_or(0);
            let compiled = (self.nvrtcCompileProgram)(program, count, options.as_ptr()) == 0;
            let (size_of, get) = match compiled {
                true => (self.nvrtcGetCUBINSize, self.nvrtcGetCUBIN),
                false => (self.nvrtcGetProgramLogSize, self.nvrtcGetProgramLog),
            };
            let mut size = 0;
            let mut bytes = Vec::new();
            let mut got = size_of(program, &mut size) == 0;
            if got {
                bytes.resize(size, 0);
                got = get(program, bytes.as_mut_ptr().cast()) == 0;
            }
            (self.nvrtcDestroyProgram)(&mut program);
            match (compiled, got) {
                (true, true) => Ok(bytes),
                _ => failed(&format!("says {}", String::from_utf8_lossy(&bytes))),
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn texts_have_the_hash_of_libstdcxx() {
        // What GCC 13's std::hash<std::string> gives.
        assert_eq!(murmur(b""), 0x553e_9390_1e46_2a6e);
        assert_eq!(murmur(b"custom"), 0x4a61_d270_1df0_bf52);
        assert_eq!(murmur(b"eight by"), 0xae1d_c685_6f07_d91b);
    }

    /// Brings NVIDIA's compiler into this process: the library of `BIPLANE_TEST_CUDA`, a `CUDA_HOME`.
    #[cfg(target_os = "linux")]
    fn load(home: &Path) {
        unsafe extern "C" {
            fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
        }
        const NOW_FOR_ALL: c_int = 0x102;
        // What the second looks for by its name alone comes first.
        for begin in ["libnvrtc-builtins.so.", "libnvrtc.so."] {
            let libraries = fs::read_dir(home.join("lib")).unwrap();
            let mut paths = libraries.map(|entry| entry.unwrap().path());
            let is_it = |path: &PathBuf| {
                path.file_name()
                    .unwrap()
                    .to_string_lossy()
                    .starts_with(begin)
            };
            let path = paths.find(is_it).expect(begin);
            let name = CString::new(path.to_str().unwrap()).unwrap();
            // SAFETY: a name that lives beyond the call, of NVIDIA's library.
            let library = unsafe { dlopen(name.as_ptr(), NOW_FOR_ALL) };
            assert!(!library.is_null(), "{}", path.display());
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn load(_: &Path) {}

    /// Whether a source compiles for a GPU of today; true where there is no compiler.
    pub fn compiles(source: &str) -> bool {
        let home = std::env::var_os("BIPLANE_TEST_CUDA").map(PathBuf::from);
        if let Some(home) = &home {
            load(home);
        }
        let Some(nvrtc) = Nvrtc::find() else {
            assert!(home.is_none(), "BIPLANE_TEST_CUDA has no NVRTC");
            return true;
        };
        let mut compiler = Compiler::new(nvrtc, [9, 0], "test");
        if let Some(home) = home {
            let include = format!("--include-path={}/include", home.display());
            compiler.options.push(CString::new(include).unwrap());
        }
        let compiled = nvrtc.compile(source, &compiler.options);
        if let Err(error) = &compiled {
            eprintln!("{error}");
        }
        compiled.is_ok_and(|code| !code.is_empty())
    }
}
