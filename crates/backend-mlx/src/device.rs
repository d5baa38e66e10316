//! Which devices the linked MLX has.

use std::sync::OnceLock;

use biplane_backend::{Device, Error, Result};
use mlx_rs::{Device as MlxDevice, Stream};

use crate::error::{NAME, failed};

/// The one GPU that MLX has on this system, where it has any.
const GPU: Device = if cfg!(target_os = "macos") {
    Device::Metal
} else {
    Device::Cuda(0)
};

/// The device of this process: MLX's default device is one for all threads.
static CHOSEN: OnceLock<Device> = OnceLock::new();

/// Resolves a device and makes it MLX's default.
pub(crate) fn open(device: Device) -> Result<Device> {
    // The first call that can fail installs mlx-rs's error handler; without one MLX exits the
    // process on its first error.
    mlx_rs::memory::active_memory().map_err(failed("new"))?;
    let resolved = match device {
        Device::Auto | Device::Gpu if has_gpu() => GPU,
        Device::Auto | Device::Cpu => Device::Cpu,
        gpu if gpu == GPU && has_gpu() => GPU,
        other => return Err(unsupported(other)),
    };
    let chosen = *CHOSEN.get_or_init(|| resolved);
    if chosen != resolved {
        return Err(Error::Unsupported {
            backend: NAME,
            what: format!("use the device {resolved} while this process computes on {chosen}"),
            instead: format!("use {chosen} for all of this process's models"),
        });
    }
    let mlx_device = if resolved.is_cpu() {
        MlxDevice::cpu()
    } else {
        MlxDevice::gpu()
    };
    MlxDevice::set_default(&mlx_device);
    #[cfg(target_os = "linux")]
    if !resolved.is_cpu() {
        exit::without_destructors();
        heap::keep();
    }
    Ok(resolved)
}

/// MLX's static objects destroy CUDA graphs and streams when a process exits, after the driver has
/// shut down: MLX throws then, and the process ends by SIGABRT instead of with its exit code.
#[cfg(target_os = "linux")]
mod exit {
    use std::ffi::{c_int, c_void};
    use std::sync::Once;

    unsafe extern "C" {
        fn on_exit(f: extern "C" fn(c_int, *mut c_void), arg: *mut c_void) -> c_int;
        fn fflush(stream: *mut c_void) -> c_int;
        fn _exit(status: c_int) -> !;
    }

    extern "C" fn leave(status: c_int, _: *mut c_void) {
        // SAFETY: null flushes all of C's streams; the process ends here.
        unsafe {
            fflush(std::ptr::null_mut());
            _exit(status)
        }
    }

    /// Ends the process after the handlers that are registered later than this one, and before those
    /// registered earlier: MLX's own.
    pub(super) fn without_destructors() {
        static ONCE: Once = Once::new();
        // SAFETY: `leave` has the signature that `on_exit` calls, and lives as long as the process.
        ONCE.call_once(|| unsafe {
            on_exit(leave, std::ptr::null_mut());
        });
    }
}

/// A step's graph takes megabytes of small pieces, made and dropped every few milliseconds: the heap keeps
/// them, instead of giving pages back and taking them again.
#[cfg(target_os = "linux")]
mod heap {
    #[cfg(target_env = "gnu")]
    pub(super) fn keep() {
        use std::ffi::c_int;

        unsafe extern "C" {
            fn mallopt(param: c_int, value: c_int) -> c_int;
        }
        const TRIM_THRESHOLD: c_int = -1;
        const TOP_PAD: c_int = -2;
        // SAFETY: sets two numbers of the allocator, under its own lock.
        unsafe {
            mallopt(TRIM_THRESHOLD, 256 << 20);
            mallopt(TOP_PAD, 16 << 20);
        }
    }

    #[cfg(not(target_env = "gnu"))]
    pub(super) fn keep() {}
}

/// MLX keeps CUDA graphs by their form, counts those it has not seen before over the process' whole
/// life, and from twice its cache's size on fails every step with a new one, as advice to make the
/// cache larger. Prompts of new lengths are new forms: a server would come there for certain, so the
/// check is off unless somebody asks for it. Forgotten graphs are made again.
#[cfg(target_os = "linux")]
mod graphs {
    use std::ffi::{c_char, c_int};

    unsafe extern "C" {
        fn setenv(name: *const c_char, value: *const c_char, overwrite: c_int) -> c_int;
    }

    extern "C" fn allow_new_ones() {
        let (name, value) = (c"MLX_ENABLE_CACHE_THRASHING_CHECK", c"0");
        // SAFETY: both are strings of C; no other thread reads the environment before `main`.
        unsafe {
            setenv(name.as_ptr(), value.as_ptr(), 0);
        }
    }

    /// Runs before `main`: later on setting a variable could race with a reader.
    #[used]
    #[unsafe(link_section = ".init_array")]
    static BEFORE_MAIN: extern "C" fn() = allow_new_ones;
}

/// Asking for the GPU's stream gives an error where there is none; most other ways panic.
fn has_gpu() -> bool {
    Stream::try_default_on_device(&MlxDevice::gpu()).is_ok()
}

fn unsupported(device: Device) -> Error {
    let instead = match device {
        Device::Cuda(n) if n > 0 && has_gpu() && GPU == Device::Cuda(0) => {
            "use cuda and choose the GPU with CUDA_VISIBLE_DEVICES".to_owned()
        }
        _ if has_gpu() => format!("use {GPU} or cpu"),
        _ => "use cpu, or link an MLX that was built for this GPU".to_owned(),
    };
    Error::Unsupported {
        backend: NAME,
        what: format!("use the device {device} here"),
        instead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn new_graphs_are_no_failure() {
        assert!(std::env::var_os("MLX_ENABLE_CACHE_THRASHING_CHECK").is_some());
    }

    #[test]
    fn absent_devices_are_errors() {
        assert_eq!(open(Device::Cpu).unwrap(), Device::Cpu);
        assert_ne!(open(Device::Auto).unwrap(), Device::Auto);
        for device in [Device::Gpu, Device::Metal, Device::Cuda(0), Device::Cuda(7)] {
            if [GPU, Device::Gpu].contains(&device) && has_gpu() {
                continue;
            }
            match open(device) {
                Err(Error::Unsupported { what, .. }) => {
                    assert!(what.contains(&device.to_string()));
                }
                other => panic!("{device}: {other:?}"),
            }
        }
        // A refusal leaves the thread usable.
        open(Device::Cpu).unwrap();
        let one = mlx_rs::Array::from_f32(1.0);
        assert_eq!(one.exp().unwrap().as_slice::<f32>(), [1f32.exp()]);
    }
}
