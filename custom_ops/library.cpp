// Every schema of besskge_core's native operations; kernels register themselves, a file each.
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(besskge, m) {
  m.def("built_from() -> str");
  m.def("instruction_set(str wanted=\"\") -> str");
  m.def(
      "sampled_loss(Tensor table, Tensor index, Tensor relation, Tensor relation_id,"
      " Tensor? weight, int n_candidate, bool per_triple, bool heads,"
      " str move, str comparison, str loss, str activation, bool adversarial, float[] numbers,"
      " float scale, bool wanted, Tensor? unique_rows, Tensor? run_offsets, Tensor? order)"
      " -> (Tensor loss, Tensor d_rows, Tensor d_relation)");
  m.def("pairwise(Tensor q, Tensor e, str comparison, Tensor? weight) -> Tensor");
  m.def(
      "pairwise_backward(Tensor grad, Tensor scores, Tensor q, Tensor e, str comparison,"
      " Tensor? weight) -> (Tensor dq, Tensor de, Tensor dw)");
  m.def("indexed(Tensor q, Tensor table, Tensor index, str comparison) -> Tensor");
  m.def(
      "indexed_backward(Tensor grad, Tensor scores, Tensor q, Tensor table, Tensor index,"
      " str comparison, Tensor unique_rows, Tensor run_offsets, Tensor order)"
      " -> (Tensor dq, Tensor d_unique)");
  m.def("gather(Tensor table, Tensor index) -> Tensor");
  m.def("lookup_entries(Tensor index) -> Tensor");
  m.def("permutation(int seed, int purpose, int epoch, int step, int n) -> Tensor");
  m.def("plan_rows(Tensor rows, int n_row) -> (Tensor, Tensor, Tensor)");
  m.def(
      "random_below(int seed, int purpose, int epoch, int step, Tensor bounds, int width,"
      " ScalarType dtype) -> Tensor");
  m.def("prefer_huge_pages(Tensor x) -> ()");
  m.def(
      "scatter_update(Tensor(a!) table, Tensor(b!)[] state, Tensor values, Tensor? unique_rows, "
      "Tensor? run_offsets, Tensor? order, str rule, float lr, float weight_decay, float beta1, "
      "float beta2, float eps, int step, int? seed, int stream) -> ()");
  m.def(
      "best_k(Tensor scores, Tensor filter_start, Tensor filter_column, int k, int first)"
      " -> (Tensor, Tensor)");
  m.def("take_columns(Tensor triples, Tensor places) -> Tensor");
  m.def("buffer(int[] sizes, ScalarType dtype) -> Tensor");
  m.def("inner_products(Tensor query, Tensor rows) -> Tensor");
  m.def(
      "rank_counts(Tensor scores, Tensor answer_score, Tensor row, Tensor filter_start,"
      " Tensor filter_column, int first) -> (Tensor, Tensor)");
  m.def(
      "softmax_log_sum(Tensor scores, Tensor? excluded, Tensor label_row, Tensor label_column,"
      " float margin, float temperature) -> (Tensor, Tensor)");
  m.def(
      "softmax_gradient(Tensor scores, Tensor? excluded, Tensor label_row, Tensor label_column,"
      " Tensor log_total, Tensor weight, Tensor of_label, float margin, float temperature)"
      " -> Tensor");
  m.def(
      "softmax_scores(Tensor query, Tensor rows, Tensor? excluded, Tensor label_row,"
      " Tensor label_column, float margin, float temperature, ScalarType dtype, bool keep,"
      " int tile)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "softmax_gradients(Tensor(a!) scores, Tensor query, Tensor rows, Tensor? excluded,"
      " Tensor label_row, Tensor label_column, Tensor log_total, Tensor weight, Tensor of_label,"
      " float margin, float temperature, ScalarType dtype, Tensor(b!) grad_query,"
      " Tensor(c!) grad_rows, bool add, int tile) -> ()");
}

// Importing besskge_core._native loads this library, which is all there is to import.
extern "C" PyObject* PyInit__native(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
