# Source this: puts MLX's CUDA library and NVIDIA's libraries of the Python beside it first.
gpu=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
nvidia=$(python3 -c 'import nvidia; print("\n".join(nvidia.__path__))')
LD_LIBRARY_PATH="$gpu/site/mlx/lib:$(find $nvidia -type d -name lib | tr '\n' ':')${LD_LIBRARY_PATH:-}"
export LD_LIBRARY_PATH PYTHONPATH="$gpu/site${PYTHONPATH:+:$PYTHONPATH}" CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
export MLX_PTX_CACHE_DIR=${MLX_PTX_CACHE_DIR:-$gpu/ptx}
mkdir -p "$MLX_PTX_CACHE_DIR"
