// y = x W for few rows of x, which takes as long as reading W does.
//
//   x [rows, inputs] float32; W [panels, inputs, 16] float32 or bfloat16: columns in panels of 16, zeros behind the last
//   y [rows, outputs] float32, outputs in (16 (panels - 1), 16 panels]
//
// Each panel is read once and in the order of memory. What is added up, and in which order, depends neither on the number
// of threads nor on the other rows.

#include "kernel.h"

enum { BLOCK = 512 };  // Inputs at a time: as many panels as there are sums for stay in the second cache for all rows.

typedef struct {
  const float* x;
  const char* weights;
  float* y;
  int64_t rows, inputs, outputs;
  int is_bfloat16;
} Product;

// All rows of the next PANELS panels.
static void columns(const void* task, int64_t number) {
  const Product* p = task;
  int64_t column = PANEL * PANELS * number, left = p->outputs - column;
  int64_t begin = 0;
  do {
    Tile tile = {
        .x = p->x + begin,
        .x_stride = p->inputs,
        .weights = p->weights + size_of(p->is_bfloat16) * (p->inputs * column + PANEL * begin),
        .input_stride = PANEL,
        .panel_stride = PANEL * p->inputs,
        .y = p->y + column,
        .y_stride = p->outputs,
        .columns = left < PANEL * PANELS ? left : PANEL * PANELS,
        .inputs = p->inputs - begin < BLOCK ? p->inputs - begin : BLOCK,
        .adds = begin > 0,
    };
    multiply_tile(tile, p->rows, p->is_bfloat16);
    begin += BLOCK;
  } while (begin < p->inputs);
}

XLA_FFI_Error* nlhf_few_rows(XLA_FFI_CallFrame* frame) {
  if (tells_version(frame)) return NULL;
  if (frame->args.size != 2 || frame->rets.size != 1) return fail(frame, "few_rows takes x and W, and makes y.");
  const XLA_FFI_Buffer *x = frame->args.args[0], *weights = frame->args.args[1], *y = frame->rets.rets[0];
  int is_bfloat16 = weights->dtype == XLA_FFI_DataType_BF16;
  if (x->dtype != XLA_FFI_DataType_F32 || y->dtype != XLA_FFI_DataType_F32 ||
      !(is_bfloat16 || weights->dtype == XLA_FFI_DataType_F32))
    return fail(frame, "few_rows takes float32, and W in float32 or bfloat16.");
  if (x->rank != 2 || weights->rank != 3 || y->rank != 2 || weights->dims[2] != PANEL ||
      weights->dims[1] != x->dims[1] || y->dims[0] != x->dims[0] ||
      weights->dims[0] != (y->dims[1] + PANEL - 1) / PANEL)
    return fail(frame, "few_rows: the shapes of x, W and y do not belong together.");
  Product p = {x->data, weights->data, y->data, x->dims[0], x->dims[1], y->dims[1], is_bfloat16};
  int64_t number = (p.outputs + PANEL * PANELS - 1) / (PANEL * PANELS);
  return share(frame, columns, &p, number, p.rows * p.inputs * p.outputs > 1 << 18);
}
