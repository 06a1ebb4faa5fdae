# The files of this folder that nvcc compiles, and that tests/emulation compiles as C++. A new file goes here; one
# that cannot be C++ (third-party kernels) only into CMakeLists.txt.
set(DI_CUDA_SOURCES
    attention.cpp
    attention_decode.cu
    attention_prefill.cu
    begin_step.cu
    copy_blocks.cu
    cublaslt.cpp
    device_code.cu
    embed.cu
    error.cpp
    fast/fast_attention.cpp
    fast/plan.cu
    gemm.cpp
    gemm_skinny.cu
    gemm_skinny_quantized.cu
    gemm_tile.cu
    gpu.cpp
    pack.cpp
    project.cpp
    qkv.cu
    range.cpp
    rope.cu
    rows.cu
    scratch.cpp
    staging.cpp
    tuning.cpp)
