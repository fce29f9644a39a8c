# SPDX-License-Identifier: Apache-2.0
# The part of a torch installation that the stable ABI needs: headers and libtorch_cpu.so.
# torch's own package file is not used: with a CUDA build of torch it asks for the whole CUDA toolkit.
#
# Looks into the Python that builds the wheel (Python_EXECUTABLE or PYTHON_EXECUTABLE, set by scikit-build-core), else ./.venv, else python3.
# Sets StableTorch_VERSION and the target StableTorch::torch_cpu, and StableTorch::torch_cuda, which a CPU-only torch lacks:
# then it stands for a library of that name that the machine's torch brings.
if(NOT Python_EXECUTABLE AND PYTHON_EXECUTABLE)
  set(Python_EXECUTABLE ${PYTHON_EXECUTABLE})
elseif(NOT Python_EXECUTABLE AND EXISTS ${PROJECT_SOURCE_DIR}/.venv/bin/python)
  set(Python_EXECUTABLE ${PROJECT_SOURCE_DIR}/.venv/bin/python)
endif()
find_package(Python 3.11 QUIET COMPONENTS Interpreter)

# find_spec and metadata: importing torch would cost seconds.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import importlib.metadata as m, importlib.util as u
print(u.find_spec('torch').submodule_search_locations[0], m.version('torch'), sep=';')"
  OUTPUT_VARIABLE answer ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
if(answer)
  list(GET answer 0 StableTorch_ROOT_DIR)
  list(GET answer 1 StableTorch_VERSION)
endif()
find_path(StableTorch_INCLUDE_DIR torch/csrc/stable/library.h PATHS ${StableTorch_ROOT_DIR}/include NO_DEFAULT_PATH NO_CACHE)
find_library(StableTorch_LIBRARY torch_cpu PATHS ${StableTorch_ROOT_DIR}/lib NO_DEFAULT_PATH NO_CACHE)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(StableTorch
  REQUIRED_VARS StableTorch_LIBRARY StableTorch_INCLUDE_DIR VERSION_VAR StableTorch_VERSION
  REASON_FAILURE_MESSAGE "No torch in ${Python_EXECUTABLE}: 'make setup' installs it into .venv, or set Python_EXECUTABLE")

if(StableTorch_FOUND AND NOT TARGET StableTorch::torch_cpu)
  add_library(StableTorch::torch_cpu SHARED IMPORTED)
  set_target_properties(StableTorch::torch_cpu PROPERTIES
    IMPORTED_LOCATION ${StableTorch_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${StableTorch_INCLUDE_DIR}
    INTERFACE_COMPILE_DEFINITIONS TORCH_TARGET_VERSION=0x020b000000000000)
  find_library(StableTorch_CUDA_LIBRARY torch_cuda PATHS ${StableTorch_ROOT_DIR}/lib NO_DEFAULT_PATH NO_CACHE)
  add_library(StableTorch::torch_cuda INTERFACE IMPORTED)
  if(StableTorch_CUDA_LIBRARY)
    target_link_libraries(StableTorch::torch_cuda INTERFACE ${StableTorch_CUDA_LIBRARY})
  endif()
endif()
