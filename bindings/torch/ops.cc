// SPDX-License-Identifier: Apache-2.0
// Every schema, and nothing else. A schema says which tensors it writes, always: torch.library.opcheck
// runs on each of these in tests/python/test_opcheck.py. Shapes and meanings: python/turboquant/ops.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(turboquant, m) {
  m.def("rotate(Tensor x, Tensor signs, Tensor? base, bool inverse) -> Tensor");
  m.def("balance(Tensor query, Tensor keys, Tensor token_starts, Tensor? starts) -> Tensor");
  m.def(
      "key_metric(Tensor query, Tensor? starts, Tensor query_signs, Tensor? base, int step, "
      "bool begins, Tensor(a!) moment, Tensor(b!)? metric=None) -> ()");
  m.def(
      "encode(Tensor keys, Tensor values, Tensor token_starts, Tensor page_table, Tensor lengths, "
      "Tensor? starts, Tensor(a!) pages, Tensor(b!)? fringe, Tensor? recent_starts, "
      "Tensor key_signs, Tensor value_signs, Tensor? base, int k_bits, int v_bits, int fringe_first, "
      "bool settled=False, Tensor? key_metric=None) -> ()");
  m.def(
      "decode(Tensor pages, Tensor page_table, Tensor lengths, Tensor? starts, Tensor? fringe, "
      "Tensor? recent_starts, Tensor query_signs, Tensor value_signs, Tensor? base, int head_dim, "
      "int k_bits, int v_bits, int fringe_first, int max_tokens, ScalarType dtype) "
      "-> (Tensor keys, Tensor values)");
  m.def(
      "attend(Tensor query, Tensor? keys, Tensor? values, Tensor token_starts, Tensor pages, "
      "Tensor page_table, Tensor lengths, Tensor? starts, Tensor? fringe, Tensor? recent_starts, "
      "Tensor query_signs, Tensor value_signs, Tensor? base, Tensor? sinks, int k_bits, int v_bits, "
      "int fringe_first, float scale, float softcap, int window, bool settled=False, "
      "Tensor(z!)? workspace=None, int most_tokens=0) -> (Tensor out, Tensor lse)");
  m.def(
      "attend_encode(Tensor query, Tensor keys, Tensor values, Tensor token_starts, Tensor(a!) pages, "
      "Tensor page_table, Tensor lengths, Tensor? starts, Tensor(b!)? fringe, Tensor? recent_starts, "
      "Tensor key_signs, Tensor query_signs, Tensor value_signs, Tensor? base, Tensor? sinks, int k_bits, "
      "int v_bits, int fringe_first, float scale, float softcap, int window, bool settled=False, "
      "Tensor(z!)? workspace=None, Tensor? key_metric=None) -> Tensor");
  m.def(
      "prepare_attend_encode(Tensor query, Tensor keys, Tensor values, Tensor token_starts, Tensor pages, "
      "Tensor page_table, Tensor lengths, Tensor? starts, Tensor? fringe, Tensor? recent_starts, "
      "Tensor key_signs, Tensor query_signs, Tensor value_signs, Tensor? base, Tensor? sinks, int k_bits, "
      "int v_bits, int fringe_first, float scale, float softcap, int window, bool settled=False, "
      "Tensor? workspace=None, Tensor? key_metric=None) -> Tensor");
  m.def(  // what `state` refers to counts as a part of it: pages, fringe, workspace
      "attend_encode_prepared(Tensor query, Tensor keys, Tensor values, Tensor lengths, Tensor(a!) state) "
      "-> Tensor");

  m.def(
      "attend_workspace_bytes(int head_dim, int k_bits, int v_bits, int kv_heads, int q_heads, int "
      "sequences, "
      "int tokens, int device=-1) -> int");
  m.def(  // what the one above asks the CUDA library
      "cuda_attend_workspace_bytes(int head_dim, int k_bits, int v_bits, int kv_heads, int q_heads, "
      "int sequences, int tokens, int device) -> int");
  m.def("page_bytes(int head_dim, int k_bits, int v_bits) -> int");
  m.def("random_signs(int dim, int seed) -> Tensor");
  m.def("hadamard_base(int head_dim) -> Tensor");
  m.def("hadamard_base_size(int head_dim) -> int");
  m.def("version() -> str");

  m.def("lloyd_max(int dim, int bits) -> (Tensor centroids, Tensor boundaries, Tensor mse)");
  m.def(
      "mse_quantize(Tensor x, int bits, int seed, bool haar=False, bool norm_correct=False) "
      "-> (Tensor codes, Tensor norms)");
  m.def(
      "mse_dequantize(Tensor codes, Tensor norms, int dim, int bits, int seed, bool haar=False, "
      "bool norm_correct=False) -> Tensor");
  m.def(
      "prod_quantize(Tensor x, int bits, int seed, bool haar=False) "
      "-> (Tensor codes, Tensor signs, Tensor norms, Tensor residual_norms)");
  m.def(
      "prod_dequantize(Tensor codes, Tensor signs, Tensor norms, Tensor residual_norms, int dim, int bits, "
      "int seed, bool haar=False) -> Tensor");
  m.def(
      "prod_inner_product(Tensor queries, Tensor codes, Tensor signs, Tensor norms, Tensor residual_norms, "
      "int bits, int seed, bool haar=False) -> Tensor");
}
