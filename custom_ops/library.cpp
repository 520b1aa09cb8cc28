// Every schema of besskge_core's native operations; kernels register themselves, a file each.
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(besskge, m) {
  m.def("instruction_set(str wanted=\"\") -> str");
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
