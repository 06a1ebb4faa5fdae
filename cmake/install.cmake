# cmake --install: <prefix>/bin/deepinfer, <prefix>/share/deepinfer (configurations, the default model's script) and
# the public headers.
if(TARGET deepinfer)
  install(TARGETS deepinfer RUNTIME DESTINATION bin)
endif()
install(DIRECTORY ${PROJECT_SOURCE_DIR}/configs DESTINATION share/deepinfer OPTIONAL)
install(PROGRAMS ${PROJECT_SOURCE_DIR}/tools/fetch_default_model.sh DESTINATION share/deepinfer)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/deepinfer DESTINATION include)
