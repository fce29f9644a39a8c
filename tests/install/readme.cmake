# SPDX-License-Identifier: Apache-2.0
# Puts the README's C++ block in the place of SOURCE's main.cc and builds that as consumer.cmake does.
file(READ ${README} readme)
if(NOT readme MATCHES "```cpp\n([^`]*)```")
  message(FATAL_ERROR "README.md has no C++ block")
endif()
set(block "${CMAKE_MATCH_1}")
file(COPY ${SOURCE}/CMakeLists.txt DESTINATION ${WORK}-source)
file(WRITE ${WORK}-source/main.cc "${block}")
set(SOURCE ${WORK}-source)
include(${CMAKE_CURRENT_LIST_DIR}/consumer.cmake)
