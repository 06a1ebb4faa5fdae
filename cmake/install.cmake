# cmake --install: <prefix>/bin/deepinfer, <prefix>/share/deepinfer (configurations, the default model's script) and
# the public headers.
if(TARGET deepinfer)
  install(TARGETS deepinfer RUNTIME DESTINATION bin)
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/configs DESTINATION share/deepinfer OPTIONAL)
install(PROGRAMS ${PROJECT_SOURCE_DIR}/tools/fetch_default_model.sh DESTINATION share/deepinfer)
install(FILES ${PROJECT_SOURCE_DIR}/data/calibration.txt DESTINATION share/deepinfer)
# The same place relative to the program in the build folder, build/x/src/cli/deepinfer.
configure_file(${PROJECT_SOURCE_DIR}/data/calibration.txt ${PROJECT_BINARY_DIR}/src/share/deepinfer/calibration.txt
               COPYONLY)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/deepinfer DESTINATION include)
# Where this build's toolkit has cuBLAS and NCCL, for base/shared_library.h; the portable folder leaves it out.
if(DI_CUDA)
  set(folders "")
  foreach(folder lib64 lib targets/x86_64-linux/lib ../nccl/lib)
    if(EXISTS ${DI_CUDA_ROOT}/${folder})
      file(REAL_PATH ${DI_CUDA_ROOT}/${folder} folder)
      list(APPEND folders ${folder})
    endif()
  endforeach()
  list(REMOVE_DUPLICATES folders)
  list(JOIN folders "\n" lines)
  file(WRITE ${PROJECT_BINARY_DIR}/cuda_library_dirs "${lines}\n")
  install(FILES ${PROJECT_BINARY_DIR}/cuda_library_dirs DESTINATION share/deepinfer)
endif()
