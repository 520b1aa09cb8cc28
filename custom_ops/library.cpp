// Every schema of besskge_core's native operations; kernels register themselves, a file each.
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(besskge, m) {
  m.def("built_from() -> str");
  m.def("instruction_set(str wanted=\"\") -> str");
  m.def("count_better(Tensor scores, Tensor true_score) -> (Tensor, Tensor)");
  m.def("prefer_huge_pages(Tensor x) -> ()");
  m.def(
      "scatter_update(Tensor(a!) table, Tensor(b!)[] state, Tensor values, Tensor? unique_rows, "
      "Tensor? run_offsets, Tensor? order, str rule, float lr, float weight_decay, float beta1, "
      "float beta2, float eps, int step, int? seed, int stream) -> ()");
}

// Importing besskge_core._native loads this library, which is all there is to import.
extern "C" PyObject* PyInit__native(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
