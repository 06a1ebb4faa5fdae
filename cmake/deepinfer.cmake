# Flags and the two functions that every folder uses.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
find_program(DEEPINFER_CCACHE ccache)
if(DEEPINFER_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${DEEPINFER_CCACHE})
endif()

add_library(di_flags INTERFACE)
# x86-64-v2 is the floor of every build; faster kernels are chosen at run time from CPUID.
# nvcc's own flags are in cuda.cmake.
target_compile_options(di_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:C,CXX>:-march=x86-64-v2;-Wall;-Wextra;-Werror;-Wno-missing-field-initializers;-fno-math-errno>")
target_include_directories(di_flags INTERFACE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
target_compile_definitions(di_flags INTERFACE DEEPINFER_VERSION="${PROJECT_VERSION}" FMT_SHARED SPDLOG_FMT_EXTERNAL)
if(DEEPINFER_SANITIZE)
  target_compile_options(di_flags INTERFACE -fsanitize=${DEEPINFER_SANITIZE} -fno-omit-frame-pointer
                         -fno-sanitize-recover=all)
  target_link_options(di_flags INTERFACE -fsanitize=${DEEPINFER_SANITIZE})
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  find_program(DEEPINFER_LLD NAMES ld.lld-19 ld.lld)
  if(DEEPINFER_LLD)
    target_link_options(di_flags INTERFACE -fuse-ld=${DEEPINFER_LLD})
  endif()
endif()

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)

# di_library(base SOURCES a.cpp b.cpp DEPS x y): the target di_base of this folder.
function(di_library name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_library(di_${name} STATIC ${A_SOURCES})
  target_link_libraries(di_${name} PUBLIC di_flags ${A_DEPS})
endfunction()

# di_test(text_test SOURCES a.cpp DEPS di_text): a GoogleTest binary, one ctest entry.
function(di_test name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE di_flags ${A_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE DI_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  di_test_run(${name} ${name})
endfunction()

# di_test_run(name program VARIABLE=value...): one more ctest entry of a GoogleTest binary. Its cases go to
# <build>/gtest/<name>.xml, from which test.sh counts them.
function(di_test_run name program)
  add_test(NAME ${name} COMMAND ${program} --gtest_output=xml:${PROJECT_BINARY_DIR}/gtest/${name}.xml)
  set_tests_properties(${name} PROPERTIES ENVIRONMENT "${ARGN}")
endfunction()
