# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` gives a C++ user: the library, its headers and find_package(turboquant).
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/turboquant)

install(TARGETS turboquant EXPORT turboquantTargets)
install(DIRECTORY include/turboquant DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(EXPORT turboquantTargets NAMESPACE turboquant:: DESTINATION ${package_dir})
configure_package_config_file(cmake/turboquantConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/turboquantConfig.cmake
  INSTALL_DESTINATION ${package_dir})
# Before 1.0 a new minor version may change the API, so 0.1 does not answer for 0.2.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/turboquantConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/turboquantConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/turboquantConfigVersion.cmake
  DESTINATION ${package_dir})
if(TQ_BUILD_TOOLS)
  install(TARGETS turboquant_command)
endif()
