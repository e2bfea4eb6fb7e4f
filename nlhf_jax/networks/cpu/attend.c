// softmax(q·k + bias) v for one new position of each lane, over keys that come in one or two parts, such as those of a
// prompt, which its lanes share, and those of the response; keys and values are read once for all lanes that share them.
//
//   q [lanes, heads, queries, size] float32; out like q
//   of each part: k [rows, heads, size, length] and v [rows, heads, length, size], float32 or bfloat16; lanes is a multiple
//   of rows, and consecutive lanes share a row; bias [1, rows or lanes; 1 or heads; length] float32
//
// size is a multiple of 16. What must not be seen has a bias that is far below all logits.

#define LOAD load_ahead
#include "kernel.h"

enum { MOST_PARTS = 2, BLOCK = 8 };

typedef struct {
  const char *key, *value;
  const float* bias;
  int64_t rows, length, bias_rows, bias_heads;
  int64_t start;  // Of its logits among those of all parts.
} Part;

typedef struct {
  const float* query;
  float* out;
  int64_t lanes, heads, queries, size;
  int64_t together;  // Consecutive lanes that are one unit of work: all that share a part, or some of them.
  int64_t length;  // Of all parts, in whole vectors.
  int num_parts, is_bfloat16;
  Part parts[MOST_PARTS];
  atomic_int* out_of_memory;
} Attention;

// e^x for x ≤ 0, to two units in the last place; 0 below -87; NaN for NaN.
INLINE Floats exponential(Floats x) {
  const float round = 12582912.0f;  // 1.5 · 2^23: what is added to it is rounded to a whole number.
  Integers tiny = x < -87.0f, is_nan = x != x;
  Floats shifted = x * 1.44269504f + round, whole = shifted - round;
  Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Words power = ((Words)p + ((Words)shifted << 23)) & (Words)~tiny;
  return (Floats)((power & (Words)~is_nan) | ((Words)x & (Words)is_nan));
}

// In place: e^{x − max x}. Returns its sum.
static float exponentials(float* x, int64_t length) {
  Floats most = *(Floats*)x, sum = {0};
  for (int64_t i = WIDTH; i < length; i += WIDTH) {
    Floats next = *(Floats*)(x + i);
    Integers more = next > most;
    most = (Floats)(((Integers)next & more) | ((Integers)most & ~more));
  }
  float largest = most[0], total = 0;
  for (int n = 1; n < WIDTH; n++) largest = most[n] > largest ? most[n] : largest;
  for (int64_t i = 0; i < length; i += WIDTH) {
    Floats weights = exponential(*(Floats*)(x + i) - largest);
    *(Floats*)(x + i) = weights;
    sum += weights;
  }
  for (int n = 0; n < WIDTH; n++) total += sum[n];
  return total;
}

// Some columns of y = x K, or what BLOCK inputs from the i-th on add to them; K is dense.
INLINE void add_block(const Tile* t, int64_t i, int64_t column, int rows, float* y, int64_t y_stride, int is_bfloat16) {
  Floats sum[ROWS];
  for (int r = 0; r < rows; r++) sum[r] = i ? *(Floats*)(y + y_stride * r) : (Floats){0};
  for (int k = 0; k < BLOCK; k++) {
    int64_t at = t->columns * (i + k) + column;
    Floats key = load_ahead(t->weights, at, is_bfloat16);
    for (int r = 0; r < rows; r++) sum[r] += t->x[t->x_stride * r + i + k] * key;
  }
  for (int r = 0; r < rows; r++) *(Floats*)(y + y_stride * r) = sum[r];
}

// y = x K, K read in the order of memory: it has more columns than there are registers for, so sums are in the first cache.
INLINE void logits_of(const Tile* t, int rows, int is_bfloat16) {
  int64_t last = t->columns - WIDTH;
  float ends[ROWS * WIDTH];  // Of the last columns, some of which are among others too.
  if (last < 0) {
    for (int r = 0; r < rows; r++)
      for (int64_t c = 0; c < t->columns; c++) {
        float sum = 0;
        for (int64_t i = 0; i < t->inputs; i++)
          sum += t->x[t->x_stride * r + i] * load_one(t->weights, t->columns * i + c, is_bfloat16);
        t->y[t->y_stride * r + c] = sum;
      }
    return;
  }
  for (int64_t i = 0; i < t->inputs; i += BLOCK) {
    for (int64_t c = 0; c < last; c += WIDTH) add_block(t, i, c, rows, t->y + c, t->y_stride, is_bfloat16);
    add_block(t, i, last, rows, ends, WIDTH, is_bfloat16);
  }
  for (int r = 0; r < rows; r++) memcpy(t->y + t->y_stride * r + last, ends + WIDTH * r, sizeof(Floats));
}

// The same with loops that unroll.
#define LOGITS(rows, is_bfloat16)                      \
  case rows + 16 * is_bfloat16:                        \
    if (rows <= ROWS) logits_of(t, rows, is_bfloat16); \
    break;
#define LOGITS_OF(rows) LOGITS(rows, 0) LOGITS(rows, 1)
static __attribute__((noinline)) void logits_of_rows(const Tile* t, int rows, int is_bfloat16) {
  switch (rows + 16 * !!is_bfloat16) {
    LOGITS_OF(1) LOGITS_OF(2) LOGITS_OF(3) LOGITS_OF(4) LOGITS_OF(5) LOGITS_OF(6) LOGITS_OF(7) LOGITS_OF(8)
  }
}

static void add_bias(const Attention* a, const Part* part, int64_t lane, int64_t head, float* logits) {
  int64_t row = part->bias_rows == 1 ? 0 : lane / (a->lanes / part->bias_rows);
  const float* bias = part->bias + part->length * (part->bias_heads * row + (part->bias_heads == 1 ? 0 : head));
  for (int64_t q = 0; q < a->queries; q++)
    for (int64_t s = 0; s < part->length; s++) logits[a->length * q + s] += bias[s];
}

// Lanes that share a row of a part, as many as are together.
static int64_t common(const Attention* a, const Part* part) {
  int64_t sharing = a->lanes / part->rows;
  return sharing < a->together ? sharing : a->together;
}

// Where a lane's keys of a head begin, or its values.
static const char* held(const Attention* a, const Part* part, const char* array, int64_t lane, int64_t head) {
  int64_t row = lane / (a->lanes / part->rows);
  return array + size_of(a->is_bfloat16) * part->length * a->size * (a->heads * row + head);
}

// Logits of a part, for the lanes from `first` on, which are together.
static void ask_keys(const Attention* a, const Part* part, int64_t first, int64_t head, float* queries, float* logits) {
  for (int64_t lane = 0; lane < a->together; lane += common(a, part)) {
    Tile tile = {
        .x = queries + a->size * a->queries * lane,
        .x_stride = a->size,
        .weights = held(a, part, part->key, first + lane, head),
        .y = logits + a->length * a->queries * lane + part->start,
        .y_stride = a->length,
        .columns = part->length,
        .inputs = a->size,
    };
    for (int64_t rows = common(a, part) * a->queries; rows > 0; rows -= ROWS) {
      logits_of_rows(&tile, rows < ROWS ? (int)rows : ROWS, a->is_bfloat16);
      tile.x += ROWS * tile.x_stride;
      tile.y += ROWS * tile.y_stride;
    }
  }
}

// Adds a part's share of what is attended, by weights in place of the logits.
static void add_values(const Attention* a, const Part* part, int64_t first, int64_t head, float* weights, float* out) {
  for (int64_t lane = 0; lane < a->together; lane += common(a, part)) {
    Tile tile = {
        .x = weights + a->length * a->queries * lane + part->start,
        .x_stride = a->length,
        .weights = held(a, part, part->value, first + lane, head),
        .input_stride = a->size,
        .panel_stride = PANEL,
        .y = out + a->size * a->queries * lane,
        .y_stride = a->size,
        .columns = a->size,
        .inputs = part->length,
        .adds = part->start > 0,
    };
    multiply_tile(tile, common(a, part) * a->queries, a->is_bfloat16);
  }
}

// A head of the lanes that are together.
static void head_of_lanes(const void* task, int64_t number) {
  const Attention* a = task;
  int64_t first = number / a->heads * a->together, head = number % a->heads, of_lane = a->queries * a->size;
  int64_t rows = a->together * a->queries;
  float* queries = malloc(sizeof(float) * rows * (2 * a->size + a->length));
  if (!queries) {
    atomic_store(a->out_of_memory, 1);
    return;
  }
  float *out = queries + rows * a->size, *logits = out + rows * a->size;
  for (int64_t lane = 0; lane < a->together; lane++)
    memcpy(queries + of_lane * lane, a->query + of_lane * (a->heads * (first + lane) + head), 4 * of_lane);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t s = a->length - WIDTH; s < a->length; s++) logits[a->length * row + s] = -__builtin_inff();
  for (int n = 0; n < a->num_parts; n++) {
    ask_keys(a, &a->parts[n], first, head, queries, logits);
    for (int64_t lane = 0; lane < a->together; lane++)
      add_bias(a, &a->parts[n], first + lane, head, logits + a->length * a->queries * lane + a->parts[n].start);
  }
  for (int64_t row = 0; row < rows; row++) {
    float* weights = logits + a->length * row;
    float scale = 1 / exponentials(weights, a->length);
    for (int64_t s = 0; s < a->length; s++) weights[s] *= scale;
  }
  for (int n = 0; n < a->num_parts; n++) add_values(a, &a->parts[n], first, head, logits, out);
  for (int64_t lane = 0; lane < a->together; lane++)
    memcpy(a->out + of_lane * (a->heads * (first + lane) + head), out + of_lane * lane, 4 * of_lane);
  free(queries);
}

// Whether a part's arrays belong to the queries.
static int reads_part(const XLA_FFI_CallFrame* frame, int n, Attention* a) {
  const XLA_FFI_Buffer *key = frame->args.args[3 * n + 1], *value = frame->args.args[3 * n + 2],
                       *bias = frame->args.args[3 * n + 3];
  XLA_FFI_DataType dtype = a->is_bfloat16 ? XLA_FFI_DataType_BF16 : XLA_FFI_DataType_F32;
  if (key->rank != 4 || value->rank != 4 || bias->rank != 3 || key->dtype != dtype || value->dtype != dtype ||
      bias->dtype != XLA_FFI_DataType_F32)
    return 0;
  Part part = {key->data,    value->data,   bias->data,    key->dims[0],
               key->dims[3], bias->dims[0], bias->dims[1], n ? a->parts[n - 1].start + a->parts[n - 1].length : 0};
  const int64_t shapes[2][4] = {{part.rows, a->heads, a->size, part.length}, {part.rows, a->heads, part.length, a->size}};
  if (memcmp(key->dims, shapes[0], sizeof shapes[0]) || memcmp(value->dims, shapes[1], sizeof shapes[1])) return 0;
  if (a->lanes < 1 || part.rows < 1 || part.length < 1 || a->lanes % part.rows || bias->dims[2] != part.length) return 0;
  if (part.bias_rows != 1 && part.bias_rows != part.rows && part.bias_rows != a->lanes) return 0;
  if (part.bias_heads != 1 && part.bias_heads != a->heads) return 0;
  int64_t sharing = a->lanes / part.rows;
  a->together = sharing > a->together ? sharing : a->together;
  a->length = (part.start + part.length + WIDTH - 1) / WIDTH * WIDTH;
  a->parts[n] = part;
  return 1;
}

XLA_FFI_Error* nlhf_attend(XLA_FFI_CallFrame* frame) {
  if (tells_version(frame)) return NULL;
  int num_parts = (int)(frame->args.size / 3);
  if (frame->args.size != 3 * num_parts + 1 || num_parts < 1 || num_parts > MOST_PARTS || frame->rets.size != 1)
    return fail(frame, "attend takes queries, and keys, values and a bias of one or two parts.");
  const XLA_FFI_Buffer *query = frame->args.args[0], *out = frame->rets.rets[0];
  if (query->rank != 4 || out->rank != 4 || query->dtype != XLA_FFI_DataType_F32 ||
      out->dtype != XLA_FFI_DataType_F32 || memcmp(query->dims, out->dims, 4 * sizeof(int64_t)) ||
      query->dims[3] % PANEL)
    return fail(frame, "attend takes queries [lanes, heads, queries, a multiple of 16] in float32, and makes the like.");
  const int64_t* dims = query->dims;
  atomic_int out_of_memory = 0;
  Attention a = {
      .query = query->data,
      .out = out->data,
      .lanes = dims[0],
      .heads = dims[1],
      .queries = dims[2],
      .size = dims[3],
      .together = 1,
      .num_parts = num_parts,
      .is_bfloat16 = ((const XLA_FFI_Buffer*)frame->args.args[1])->dtype == XLA_FFI_DataType_BF16,
      .out_of_memory = &out_of_memory,
  };
  for (int n = 0; n < num_parts; n++)
    if (!reads_part(frame, n, &a)) return fail(frame, "attend: the arrays of a part do not belong to the queries.");
  int64_t least = a.together;  // Lanes that share a row of each of the parts.
  for (int n = 0; n < num_parts; n++) {
    int64_t sharing = a.lanes / a.parts[n].rows;
    if (a.together % sharing)
      return fail(frame, "attend: lanes that share a row of one part have to share one of the other, or none.");
    least = sharing < least ? sharing : least;
  }
  // Few heads of few prompts would leave threads idle.
  while (a.lanes / a.together * a.heads < number_of_threads(frame) && a.together % (2 * least) == 0) a.together /= 2;
  int64_t number = a.lanes / a.together * a.heads;
  int64_t much = a.lanes * a.heads * a.queries * a.size * a.length > 1 << 17;
  XLA_FFI_Error* error = share(frame, head_of_lanes, &a, number, (int)much);
  return !error && atomic_load(&out_of_memory) ? fail_for_memory(frame) : error;
}
