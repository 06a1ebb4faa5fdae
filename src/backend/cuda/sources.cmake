# The files of this folder that nvcc compiles, and that tests/emulation compiles as C++. A new file goes here; one
# that cannot be C++ (third-party kernels) only into CMakeLists.txt.
set(DI_CUDA_SOURCES
    begin_step.cu
    cublaslt.cpp
    device_code.cu
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
    range.cpp
    rows.cu
    scratch.cpp
    staging.cpp
    tuning.cpp)
