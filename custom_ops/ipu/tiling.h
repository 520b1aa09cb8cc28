// How pairs of rows are dealt to tiles: each gets a rectangle of the score matrix, the rows of its
// queries and those of its candidates. Without Poplar, so that the host can test it.
//
// Axes: B queries, N candidates, D width of a row; a tile's rectangle is (rows, columns).
#pragma once
#include <algorithm>
#include <cstddef>
#include <vector>

namespace besskge_core {

struct Rectangle {
  std::size_t rows, columns;
};

// Cycles of a tile for its pairs, six workers together, counted in instructions: a load beside a
// subtraction, and two more, for two entries; some before and after each pair.
inline std::size_t cycles_of_pairs(Rectangle r, std::size_t width) {
  return r.rows * r.columns * (2 * width + 20);
}

// Cycles until its rows are there: four bytes a cycle.
inline std::size_t cycles_of_rows(Rectangle r, std::size_t width, std::size_t element_bytes) {
  return (r.rows + r.columns) * width * element_bytes / 4;
}

// Bytes that a tile holds going forward, and going back.
inline std::size_t bytes_forward(Rectangle r, std::size_t width, std::size_t element_bytes) {
  return (r.rows + r.columns) * width * element_bytes + r.rows * r.columns * sizeof(float);
}
inline std::size_t bytes_back(Rectangle r, std::size_t width, std::size_t element_bytes) {
  return bytes_forward(r, width, element_bytes + sizeof(float));  // rows, and their gradients
}

inline std::size_t parts(std::size_t n, std::size_t each) { return (n + each - 1) / each; }

// The rectangles that finish first, of all that give no tile two. Those at an edge may be smaller.
// Expects B, N and n_tile of at least 1.
inline Rectangle deal_pairs(std::size_t n_query, std::size_t n_candidate, std::size_t width,
                            std::size_t element_bytes, std::size_t n_tile) {
  Rectangle best{n_query, n_candidate};
  std::size_t least = static_cast<std::size_t>(-1);
  for (std::size_t down = 1; down <= std::min(n_query, n_tile); ++down) {
    const std::size_t across = std::min(n_candidate, n_tile / down);
    const Rectangle r{parts(n_query, down), parts(n_candidate, across)};
    const std::size_t cycles = cycles_of_pairs(r, width) + cycles_of_rows(r, width, element_bytes);
    if (cycles < least) least = cycles, best = r;
  }
  return best;
}

// The pairs of one tile: [row, row_end) of the queries with [column, column_end) of the candidates.
struct Part {
  std::size_t row, row_end, column, column_end;
  std::size_t down, across;  // place among the rectangles
  std::size_t rows() const { return row_end - row; }
  std::size_t columns() const { return column_end - column; }
};

// All of them, row by row of rectangles; the place in this list is the tile.
inline std::vector<Part> all_parts(std::size_t n_query, std::size_t n_candidate, Rectangle each) {
  std::vector<Part> all;
  for (std::size_t row = 0; row < n_query; row += each.rows) {
    for (std::size_t column = 0; column < n_candidate; column += each.columns) {
      all.push_back({row, std::min(row + each.rows, n_query), column,
                     std::min(column + each.columns, n_candidate), row / each.rows,
                     column / each.columns});
    }
  }
  return all;
}

}  // namespace besskge_core
