// y = x W for few rows of x, which takes as long as reading W does: a custom call of XLA on CPUs.
//
//   x [rows, inputs] float32; W [panels, inputs, 16] float32 or bfloat16, columns in panels of 16, zeros behind the last
//   y [rows, outputs] float32, outputs in (16 (panels - 1), 16 panels]
//
// A tile keeps the sums of some rows and panels in registers while it goes down the panels once. Threads of XLA's own pool
// take tiles until none is left. What is added up, and in which order, does not depend on them, nor on the other rows.

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

enum { PANEL = 16, BLOCK = 512 };  // Inputs at a time, whose panels stay in the second cache for all rows.

#if defined(__AVX512F__)
enum { WIDTH = 16, ROWS = 8, PANELS = 3 };
#elif defined(__AVX__)
enum { WIDTH = 8, ROWS = 6, PANELS = 1 };
#elif defined(__aarch64__)
enum { WIDTH = 4, ROWS = 6, PANELS = 1 };
#else
enum { WIDTH = 4, ROWS = 3, PANELS = 1 };
#endif
enum { PARTS = PANEL / WIDTH };

typedef float Floats __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));

typedef struct {
  const float* x;
  const char* weights;
  float* y;
  int64_t rows, inputs, outputs;
  int is_bfloat16;
  atomic_long next;  // The first panel of the next tile.
  atomic_int holders;  // Threads that may still read this.
  atomic_long done;  // Panels.
} Product;

static inline Floats load(const char* weights, int64_t index, int is_bfloat16) {
  if (!is_bfloat16) return *(const Floats*)(weights + 4 * index);
  Words words = __builtin_convertvector(*(const Halves*)(weights + 2 * index), Words) << 16;
  return (Floats)words;
}

// Sums over the inputs [begin, end) of `rows` rows from `row` on and `panels` panels from `panel` on; begin > 0 goes on.
static inline __attribute__((always_inline)) void tile(
    const Product* p, int rows, int panels, int is_bfloat16, int64_t row, int64_t panel, int64_t begin, int64_t end) {
  Floats sum[ROWS][PANELS][PARTS];
  for (int r = 0; r < rows; r++)
    for (int n = 0; n < panels; n++)
      for (int part = 0; part < PARTS; part++) sum[r][n][part] = (Floats){0};
  const float* x = p->x + row * p->inputs;
  const char* weights = p->weights + (is_bfloat16 ? 2 : 4) * PANEL * p->inputs * panel;
  for (int64_t i = begin; i < end; i++)
    for (int n = 0; n < panels; n++)
      for (int part = 0; part < PARTS; part++) {
        Floats w = load(weights, PANEL * (p->inputs * n + i) + WIDTH * part, is_bfloat16);
        for (int r = 0; r < rows; r++) sum[r][n][part] += x[p->inputs * r + i] * w;
      }
  for (int r = 0; r < rows; r++)
    for (int n = 0; n < panels; n++) {
      int64_t column = PANEL * (panel + n), width = p->outputs - column;
      float* y = p->y + (row + r) * p->outputs + column;
      const float* sums = (const float*)sum[r][n];
      width = width < PANEL ? width : PANEL;
      for (int64_t c = 0; c < width; c++) y[c] = begin ? y[c] + sums[c] : sums[c];
    }
}

#define CASE(rows) \
  case rows:       \
    return tile(p, rows, panels, is_bfloat16, row, panel, begin, end);

// `tile` for each number of rows, so that the sums are in registers.
static inline __attribute__((always_inline)) void some_rows(
    const Product* p, int rows, int panels, int is_bfloat16, int64_t row, int64_t panel, int64_t begin, int64_t end) {
  switch (rows) {
    CASE(1)
    CASE(2)
    CASE(3)
#if defined(__AVX__) || defined(__aarch64__)
    CASE(4)
    CASE(5)
    CASE(6)
#endif
#if defined(__AVX512F__)
    CASE(7)
    CASE(8)
#endif
  }
}

#define VARIANT(name, panels, is_bfloat16)                                                                        \
  static __attribute__((noinline)) void name(const Product* p, int rows, int64_t row, int64_t panel, int64_t begin, \
                                             int64_t end) {                                                       \
    some_rows(p, rows, panels, is_bfloat16, row, panel, begin, end);                                              \
  }
VARIANT(one_float, 1, 0)
VARIANT(all_float, PANELS, 0)
VARIANT(one_bfloat16, 1, 1)
VARIANT(all_bfloat16, PANELS, 1)

static int64_t panels_of(const Product* p) { return (p->outputs + PANEL - 1) / PANEL; }

// All rows of some panels.
static void columns(const Product* p, int64_t panel, int64_t panels) {
  for (int64_t begin = 0; begin < p->inputs; begin += BLOCK) {
    int64_t end = begin + BLOCK < p->inputs ? begin + BLOCK : p->inputs;
    for (int64_t row = 0; row < p->rows; row += ROWS) {
      int rows = p->rows - row < ROWS ? (int)(p->rows - row) : ROWS;
      if (panels == PANELS)
        (p->is_bfloat16 ? all_bfloat16 : all_float)(p, rows, row, panel, begin, end);
      else
        for (int64_t n = 0; n < panels; n++)
          (p->is_bfloat16 ? one_bfloat16 : one_float)(p, rows, row, panel + n, begin, end);
    }
  }
}

static void release(Product* p) {
  if (atomic_fetch_sub(&p->holders, 1) == 1) free(p);
}

// Takes tiles until none is left.
static void work(Product* p) {
  int64_t total = panels_of(p), panel;
  while ((panel = atomic_fetch_add(&p->next, PANELS)) < total) {
    int64_t panels = total - panel < PANELS ? total - panel : PANELS;
    columns(p, panel, panels);
    atomic_fetch_add(&p->done, panels);
  }
}

static void help(void* data) {
  work(data);
  release(data);
}

static XLA_FFI_Error* fail(const XLA_FFI_CallFrame* frame, const char* message) {
  XLA_FFI_Error_Create_Args args = {
      XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, message, XLA_FFI_Error_Code_INVALID_ARGUMENT};
  return frame->api->XLA_FFI_Error_Create(&args);
}

// Asks other threads of the pool for help. One that comes late finds no tile left.
static void ask_for_help(const XLA_FFI_CallFrame* frame, Product* p) {
  int64_t threads = 1, tiles = (panels_of(p) + PANELS - 1) / PANELS;
  XLA_FFI_ThreadPool_NumThreads_Args number = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &threads};
  if (frame->api->XLA_FFI_ThreadPool_NumThreads(&number)) return;
  threads = threads < tiles ? threads : tiles;
  for (int64_t n = 1; n < threads; n++) {
    XLA_FFI_ThreadPool_Schedule_Args task = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help, p};
    atomic_fetch_add(&p->holders, 1);
    if (frame->api->XLA_FFI_ThreadPool_Schedule(&task)) {
      atomic_fetch_sub(&p->holders, 1);
      return;
    }
  }
}

static XLA_FFI_Error* multiply(const XLA_FFI_CallFrame* frame) {
  if (frame->args.size != 2 || frame->rets.size != 1) return fail(frame, "few_rows takes x and W and makes y.");
  const XLA_FFI_Buffer *x = frame->args.args[0], *weights = frame->args.args[1], *y = frame->rets.rets[0];
  int is_bfloat16 = weights->dtype == XLA_FFI_DataType_BF16;
  if (x->dtype != XLA_FFI_DataType_F32 || y->dtype != XLA_FFI_DataType_F32 ||
      !(is_bfloat16 || weights->dtype == XLA_FFI_DataType_F32))
    return fail(frame, "few_rows takes float32, and weights in float32 or bfloat16.");
  if (x->rank != 2 || weights->rank != 3 || y->rank != 2 || weights->dims[2] != PANEL || weights->dims[1] != x->dims[1] ||
      y->dims[0] != x->dims[0] || weights->dims[0] != (y->dims[1] + PANEL - 1) / PANEL)
    return fail(frame, "few_rows: the shapes of x, W and y do not belong together.");
  Product* p = malloc(sizeof *p);
  if (!p) return fail(frame, "few_rows: no memory.");
  *p = (Product){x->data, weights->data, y->data, x->dims[0], x->dims[1], y->dims[1], is_bfloat16, 0, 1, 0};
  int64_t total = panels_of(p);
  if (p->rows * p->inputs * p->outputs > 1 << 18) ask_for_help(frame, p);
  work(p);
  for (int tries = 0; atomic_load(&p->done) < total; tries++)
    if (tries > 1000) sched_yield();
  release(p);
  return NULL;
}

// XLA asks for the version first.
XLA_FFI_Error* nlhf_few_rows(XLA_FFI_CallFrame* frame) {
  XLA_FFI_Extension_Base* extension = frame->extension_start;
  if (extension && extension->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)extension)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    return NULL;
  }
  return multiply(frame);
}
