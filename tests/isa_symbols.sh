#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# An object built for one instruction set may define nothing that the linker could merge with another
# object's copy (weak or unique symbols): that copy would then run on machines without the set.
checked=0
for object in "$@"; do
  leaks=$(nm --defined-only "$object" | grep -E ' [WVu] ' | c++filt)
  [ -z "$leaks" ] || { echo "$object leaks:"; echo "$leaks"; exit 1; }
  checked=$((checked + 1))
done
[ "$checked" -gt 0 ] && echo "checked $checked objects"
