// Queries: the known entity, moved by a relation. Included by each_isa.h; `Move` is in sampled_loss.h.

// The known entity x, moved by the relation r -> out, all (D).
static void move_row(const Moved& of, const float* x, const float* r, float* out) {
  if (of.move == Move::complex_scaling) {
    const int64_t half = of.d / 2;
    for (int64_t k = 0; k < half; k += kWidth) {
      const int64_t left = half - k;
      const Vec a = load_some(x + k, left), b = load_some(x + half + k, left);
      const Vec c = load_some(r + k, left), s = load_some(r + half + k, left);
      store_some(out + k, of.heads ? a * c + b * s : a * c - b * s, left);
      store_some(out + half + k, of.heads ? b * c - a * s : b * c + a * s, left);
    }
    return;
  }
  for (int64_t k = 0; k < of.d; k += kWidth) {
    const int64_t left = of.d - k;
    Vec v = load_some(x + k, left);
    if (of.move == Move::translation) {
      const Vec shift = load_some(r + k, left);
      v = of.heads ? v - shift : v + shift;
    } else {
      v *= load_some(r + k, left);
    }
    store_some(out + k, v, left);
  }
}

// The gradient g of a moved entity -> dx and dr, all (D).
static void move_row_back(const Moved& of, const float* x, const float* r, const float* g,
                          float* dx, float* dr) {
  if (of.move == Move::complex_scaling) {
    const int64_t half = of.d / 2;
    for (int64_t k = 0; k < half; k += kWidth) {
      const int64_t left = half - k;
      const Vec a = load_some(x + k, left), b = load_some(x + half + k, left);
      const Vec c = load_some(r + k, left), s = load_some(r + half + k, left);
      const Vec u = load_some(g + k, left), v = load_some(g + half + k, left);
      store_some(dx + k, of.heads ? u * c - v * s : u * c + v * s, left);
      store_some(dx + half + k, of.heads ? u * s + v * c : v * c - u * s, left);
      store_some(dr + k, a * u + b * v, left);
      store_some(dr + half + k, of.heads ? b * u - a * v : a * v - b * u, left);
    }
    return;
  }
  for (int64_t k = 0; k < of.d; k += kWidth) {
    const int64_t left = of.d - k;
    Vec v = load_some(g + k, left);
    if (of.move == Move::translation) {
      store_some(dr + k, of.heads ? -v : v, left);
    } else {
      store_some(dr + k, v * load_some(x + k, left), left);
      v *= load_some(r + k, left);
    }
    store_some(dx + k, v, left);
  }
}
