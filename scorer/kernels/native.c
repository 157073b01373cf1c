/* The scorer's inner loops: from a shard to a batch, and from a batch's predictions to bytes again.
 *
 * scorer/kernels/loops.py says what each does and chooses between these and their twins in NumPy (numpy_loops.py), for
 * installations without a C compiler and processors without an instruction for CRC32C; the results are the same. Nothing
 * here raises for what is in a shard: decoding leaves out irregular records, for protobuf, which has the words for them.
 *
 * Offsets are int64. No function reads or writes outside of the buffers it is given, whatever is in them and whoever
 * changes it meanwhile: sizes are read once, and checked where they are used. Buffers may be misaligned. All that take
 * long release the interpreter's lock.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define WITH_CRC __attribute__((target("sse4.2")))
#define CRC_WORD(crc, word) ((uint32_t)_mm_crc32_u64(crc, word))
#define CRC_BYTE(crc, byte) _mm_crc32_u8(crc, byte)
static bool has_crc(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__) && defined(__linux__) && !defined(__AARCH64EB__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define WITH_CRC __attribute__((target("+crc")))
#define CRC_WORD(crc, word) __crc32cd(crc, word)
#define CRC_BYTE(crc, byte) __crc32cb(crc, byte)
static bool has_crc(void) { return getauxval(AT_HWCAP) & (1 << 7); /* HWCAP_CRC32 */ }
#elif defined(__aarch64__) && defined(__APPLE__)
#include <arm_acle.h>
#define WITH_CRC __attribute__((target("crc")))
#define CRC_WORD(crc, word) __crc32cd(crc, word)
#define CRC_BYTE(crc, byte) __crc32cb(crc, byte)
static bool has_crc(void) { return true; }
#else
#error "no instruction for CRC32C is known for this processor; the decoder in NumPy serves it"
#endif

enum { HEADER = 12, FOOTER = 4, TOGETHER = 4 };

static uint32_t u32(const uint8_t *at) { uint32_t value; memcpy(&value, at, sizeof value); return value; }
static uint64_t u64(const uint8_t *at) { uint64_t value; memcpy(&value, at, sizeof value); return value; }
static int64_t i64(const uint8_t *at) { return (int64_t)u64(at); }
static float f32(const uint8_t *at) { float value; memcpy(&value, at, sizeof value); return value; }
static void put_i64(uint8_t *at, int64_t value) { memcpy(at, &value, sizeof value); }

/* ---- framing: uint64 length | masked CRC32C of it | payload | masked CRC32C of it, little-endian ---- */

static uint32_t masked(uint32_t crc) { return (crc >> 15 | crc << 17) + 0xa282ead8u; }

enum { STRIPE = 2048 }; /* bytes whose CRC is taken beside that of as many more */
static uint32_t after_stripe[4][256]; /* what a CRC's bytes, the lowest first, come to after a stripe of zeros */

WITH_CRC static void prepare_stripes(void) {
    for (int byte = 0; byte < 4; byte++)
        for (uint32_t value = 1; value < 256; value++) {
            uint32_t lowest = value & -value, crc = lowest << 8 * byte;
            if (value == lowest)
                for (int i = 0; i < STRIPE; i += 8) crc = CRC_WORD(crc, 0);
            else crc = after_stripe[byte][lowest] ^ after_stripe[byte][value ^ lowest];
            after_stripe[byte][value] = crc;
        }
}

static uint32_t past_stripe(uint32_t crc) {
    return after_stripe[0][crc & 0xff] ^ after_stripe[1][crc >> 8 & 0xff] ^ after_stripe[2][crc >> 16 & 0xff] ^
           after_stripe[3][crc >> 24];
}

/* The instruction takes three cycles and can start in each: three stripes at a time keep it busy, where one would wait
 * for itself. A CRC is linear: that of all three is the first one's after two stripes of zeros, the second's after one,
 * and the third's, each begun at 0 but the first. */
WITH_CRC static uint32_t crc_bytes(uint32_t crc, const uint8_t *at, const uint8_t *end) {
    for (; end - at >= 3 * STRIPE; at += 3 * STRIPE) {
        uint32_t second = 0, third = 0;
        for (int i = 0; i < STRIPE; i += 8) {
            crc = CRC_WORD(crc, u64(at + i));
            second = CRC_WORD(second, u64(at + STRIPE + i));
            third = CRC_WORD(third, u64(at + 2 * STRIPE + i));
        }
        crc = past_stripe(past_stripe(crc) ^ second) ^ third;
    }
    for (; end - at >= 8; at += 8) crc = CRC_WORD(crc, u64(at));
    for (; at < end; at++) crc = CRC_BYTE(crc, *at);
    return crc;
}

/* Whether each of the records from `places` on has the CRC that its payload ought to have.
 *
 * A few records at a time keep the instruction busy, as stripes of long ones do. */
WITH_CRC static void check_payloads(const uint8_t *block, const int64_t *places, int64_t count, uint8_t *bad) {
    for (int64_t first = 0; first < count; first += TOGETHER) {
        int64_t some = count - first < TOGETHER ? count - first : TOGETHER, least = INT64_MAX;
        const uint8_t *at[TOGETHER], *end[TOGETHER];
        uint32_t crc[TOGETHER];
        for (int64_t i = 0; i < TOGETHER; i++) {
            int64_t row = first + (i < some ? i : 0); /* the last few: the first one again, as often as it takes */
            at[i] = block + places[row] + HEADER;
            end[i] = block + places[row + 1] - FOOTER;
            crc[i] = ~0u;
            if (end[i] - at[i] < least) least = end[i] - at[i];
        }
        for (int64_t byte = 0; byte + 8 <= least; byte += 8)
            for (int i = 0; i < TOGETHER; i++) crc[i] = CRC_WORD(crc[i], u64(at[i] + byte));
        for (int64_t i = 0; i < some; i++) {
            uint32_t whole = ~crc_bytes(crc[i], at[i] + least / 8 * 8, end[i]);
            bad[first + i] = masked(whole) != u32(end[i]);
        }
    }
}

/* Whether a header starts at `at`: a length with its CRC. */
WITH_CRC static bool is_header(const uint8_t *at) { return masked(~(uint32_t)CRC_WORD(~0u, u64(at))) == u32(at + 8); }

/* The whole records at the start of `size` bytes, at most `most`, that start before byte `stop`; places[n] is where
 * record n starts. */
static int64_t find_records(const uint8_t *block, int64_t size, int64_t stop, int64_t most, int64_t *places) {
    int64_t count = 0, place = places[0] = 0;
    while (count < most && place < stop && size - place >= HEADER + FOOTER) {
        uint64_t length = u64(block + place);
        if (length > (uint64_t)(size - place - HEADER - FOOTER) || !is_header(block + place)) break;
        place += HEADER + (int64_t)length + FOOTER;
        places[++count] = place;
    }
    return count;
}

/* ---- tf.Example: 0A len { 0A len { 0A len key  12 len { kind len { tag len data } } } ... }, perhaps 12 00 ----
 *
 * A feature that is asked for must be of exactly this form. All others are read over, whatever valid form they have. */

enum { FIELD_1 = 0x0a, FIELD_2 = 0x12, BYTES_LIST = 0x0a, FLOAT_LIST = 0x12, INT64_LIST = 0x1a };
enum { VARINT, FIXED64, LENGTH, FIXED32 = 5 }; /* wire types, the lower three bits of a tag */
/* As scorer/kernels/limits.py has them, which compares. */
enum { MAX_INPUTS = 64, MAX_FILES = 64, MAX_ID_BYTES = 1024, MAX_LABEL_BYTES = 1 << 16, KEYED_ID_BYTES = 64, MAP_DEPTH = 10,
       BIN_SHIFT = 13, MOST_APART = 1 };

typedef struct { const uint8_t *at, *end; } Span;
enum { HEAD = 33 }; /* bytes: three tags, each with a length of at most ten */
typedef struct { uint8_t bytes[HEAD]; int64_t size; } Head; /* what stands before the data of every frame */
typedef struct { const char *name; Py_ssize_t size; int64_t width; Head head; } Input; /* the head of frames alone */

/* Take field `tag` off the start of `outer`; its content is `inner`. */
static bool take(Span *outer, uint8_t tag, Span *inner) {
    if (outer->at == outer->end || *outer->at++ != tag) return false;
    uint64_t length = 0;
    for (int i = 0;; i++) { /* a base-128 varint: 7 bits a byte, the lowest first, bit 7 set in all but the last */
        if (i == 4 || outer->at == outer->end) return false;
        uint8_t byte = *outer->at++;
        length |= (uint64_t)(byte & 0x7f) << 7 * i;
        if (byte < 0x80) break;
    }
    if (length > (uint64_t)(outer->end - outer->at)) return false;
    inner->at = outer->at;
    inner->end = outer->at += length;
    return true;
}

/* As `take`, of something that holds this one field alone. */
static bool enter(Span outer, uint8_t tag, Span *inner) { return take(&outer, tag, inner) && outer.at == outer.end; }

/* Take the next entry off a map: its key, and its value, empty where it has none. */
static bool take_entry(Span *map, Span *key, Span *value) {
    Span entry;
    if (!take(map, FIELD_1, &entry) || !take(&entry, FIELD_1, key)) return false;
    *value = entry;
    return entry.at == entry.end || enter(entry, FIELD_2, value);
}

static bool is_named(Span key, const char *name, Py_ssize_t size) {
    return key.end - key.at == size && memcmp(key.at, name, size) == 0;
}

/* Whether text is UTF-8 as protobuf and Python have it: without surrogates, nothing longer than need be. */
static bool is_utf8(Span text) {
    while (text.at < text.end) {
        uint8_t lead = *text.at++;
        if (lead < 0x80) continue;
        int more = lead < 0xc2 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : lead < 0xf5 ? 3 : 0;
        if (!more || text.end - text.at < more) return false;
        uint8_t least = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        uint8_t most = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        if (*text.at < least || *text.at > most) return false;
        for (text.at++; --more; text.at++)
            if ((*text.at & 0xc0) != 0x80) return false;
    }
    return true;
}

enum { VARINT_MORE = 9 }; /* the most bytes of a varint that say that one more follows */
#define EVERY_BYTE_MORE 0x8080808080808080u

/* Whether packed varints are whole, and none too long. */
static bool are_varints(Span packed) {
    int64_t more = 0; /* such bytes of the varint in hand */
    for (; packed.end - packed.at >= 8; packed.at += 8) {
        uint64_t last = ~u64(packed.at) & EVERY_BYTE_MORE; /* bit 7 of the bytes that end one; the lowest byte is first */
        more += last ? __builtin_ctzll(last) / 8 : 8;
        if (more > VARINT_MORE) return false;
        if (last) more = __builtin_clzll(last) / 8;
    }
    for (; packed.at < packed.end && more <= VARINT_MORE; packed.at++) more = *packed.at < 0x80 ? 0 : more + 1;
    return more == 0;
}

static bool skip(Span *message, int64_t size) {
    if (message->end - message->at < size) return false;
    message->at += size;
    return true;
}

static bool skip_varint(Span *message) {
    for (int i = 0; i <= VARINT_MORE && message->at < message->end; i++)
        if (*message->at++ < 0x80) return true;
    return false;
}

/* Whether these are the data of a list, packed where they are numbers. */
static bool are_data(Span data, uint8_t kind) {
    return kind == INT64_LIST ? are_varints(data) : kind != FLOAT_LIST || (data.end - data.at) % 4 == 0;
}

/* Whether a list, or what follows an Example's features (kind 0), is valid. Groups and fields beyond 15 are protobuf's. */
static bool is_valid(Span message, uint8_t kind) {
    while (message.at < message.end) {
        uint8_t tag = *message.at, field = tag >> 3;
        Span data;
        if (!field || field > 15 || (!kind && field == 1)) return false;
        if ((tag & 7) == LENGTH) {
            if (!take(&message, tag, &data) || (tag == FIELD_1 && !are_data(data, kind))) return false;
            continue;
        }
        message.at++;
        if ((tag & 7) == VARINT) { if (!skip_varint(&message)) return false; }
        else if ((tag & 7) == FIXED64) { if (!skip(&message, 8)) return false; }
        else if ((tag & 7) != FIXED32 || !skip(&message, 4)) return false;
    }
    return true;
}

/* Whether a feature that nobody asked for is valid; most hold one list. */
static bool is_valid_feature(Span feature) {
    while (feature.at < feature.end) {
        uint8_t kind = *feature.at;
        Span list;
        if (kind != BYTES_LIST && kind != FLOAT_LIST && kind != INT64_LIST) return false;
        if (!take(&feature, kind, &list) || !is_valid(list, kind)) return false;
    }
    return true;
}

/* Take the data of a feature's one list, of `kind`, apart from all else. */
static bool enter_list(Span feature, uint8_t kind, Span *data) {
    if (!enter(feature, kind, data)) return false;
    return data->at == data->end || enter(*data, FIELD_1, data);
}

/* Which of `found` the feature with this key belongs to; -1 if nobody asked for it. */
static int64_t column_of(Span key, const Input *inputs, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (is_named(key, inputs[i].name, inputs[i].size)) return i;
    if (is_named(key, "id", 2) || is_named(key, "video_id", 8)) return count;
    return is_named(key, "labels", 6) ? count + 1 : -1;
}

/* Whether the data of a feature that was asked for are what `find_features` finds. */
static bool enter_column(Span feature, int64_t column, const Input *inputs, int64_t count, Span *data) {
    if (column == count) {
        if (!enter_list(feature, BYTES_LIST, data)) return false;
        return data->end > data->at && data->end - data->at <= MAX_ID_BYTES;
    }
    if (column > count) return enter_list(feature, INT64_LIST, data) && data->end - data->at <= MAX_LABEL_BYTES;
    return enter_list(feature, FLOAT_LIST, data) && data->end - data->at == 4 * inputs[column].width;
}

/* The data of one record's features in the order of `found`: the inputs, the id, the labels. False for a record that is
 * in any way irregular, which may still be a good one. */
static bool find_features(Span example, const Input *inputs, int64_t count, Span *found) {
    Span features;
    for (int64_t i = 0; i < count + 2; i++) found[i] = (Span){NULL, NULL};
    if (!take(&example, FIELD_1, &features) || !is_valid(example, 0)) return false;
    while (features.at < features.end) {
        Span key, feature, data;
        if (!take_entry(&features, &key, &feature)) return false;
        int64_t column = column_of(key, inputs, count);
        if (column < 0) {
            if (!is_utf8(key) || !is_valid_feature(feature)) return false;
            continue;
        }
        if (found[column].at || !enter_column(feature, column, inputs, count, &data)) return false;
        found[column] = data;
    }
    for (int64_t i = 0; i <= count; i++)
        if (!found[i].at) return false;
    return true;
}

/* Whether a text in UTF-8 has control characters: C0, DEL or C1 (U+0080 to U+009F). */
static bool has_controls(Span text) { /* valid UTF-8; U+2028 and U+2029 end lines too */
    for (; text.at < text.end; text.at++)
        if (*text.at < ' ' || *text.at == 0x7f || (*text.at == 0xc2 && text.at[1] < 0xa0) ||
            (*text.at == 0xe2 && text.at[1] == 0x80 && (text.at[2] == 0xa8 || text.at[2] == 0xa9)))
            return true;
    return false;
}

/* Whether an id and labels found by `find_features` are valid. */
static bool is_plain(Span id, Span labels) {
    return is_utf8(id) && !has_controls(id) && are_varints(labels);
}

/* Copy float32 numbers; whether all are finite. */
static bool copy_finite(const uint8_t *source, uint8_t *target, int64_t size) {
    uint32_t special = 0; /* all bits of the exponent: infinite, or no number */
    for (int64_t byte = 0; byte < size; byte += 4) {
        uint32_t bits = u32(source + byte);
        memcpy(target + byte, &bits, sizeof bits);
        special |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !special;
}

/* ---- all of it at once, while the bytes are in the core's own cache ---- */

enum { ID, LABELS, LABELLED, RECORD, SIZES }; /* the rows of scorer.kernels.packed.RowSizes */
enum { AT_ONCE = 1 << 17 }; /* bytes read: they stay in the core's own cache until they are decoded */
enum { BEYOND = 1 << 14 }; /* bytes read of what follows the last record's start, which most records have fewer of */

typedef struct { uint8_t *data; int64_t size, room; } Text; /* grows */
typedef struct {
    const Input *inputs;
    int64_t count, row, last, most; /* inputs; the next row, the one to stop before, and all there are */
    uint8_t **rows, *sizes;
    int64_t bytes; /* of the records so far */
    Text ids, labels;
    bool plain; /* whether to end before the first irregular record */
    bool labelled, left, no_memory; /* whether one has `labels`, was left out, found no room for its id or labels */
    bool beside_means; /* of frames: whether the records that have inputs beside them are decoded too */
} Batch;

static bool append(Text *text, Span more) {
    int64_t size = more.end - more.at;
    if (!size) return true;
    if (text->size + size > text->room) {
        int64_t room = 2 * (text->size + size) + 4096;
        uint8_t *data = realloc(text->data, room);
        if (!data) return false;
        text->data = data, text->room = room;
    }
    memcpy(text->data + text->size, more.at, size);
    text->size += size;
    return true;
}

static void put_size(const Batch *batch, int64_t kind, int64_t size) {
    put_i64(batch->sizes + 8 * (kind * batch->most + batch->row), size);
}

/* Put the id and the labels of the next row; false without room for them. */
static bool put_names(Batch *batch, Span id, Span labels) {
    if (!append(&batch->ids, id) || !append(&batch->labels, labels)) {
        batch->no_memory = true;
        return false;
    }
    put_size(batch, ID, id.end - id.at);
    put_size(batch, LABELS, labels.end - labels.at);
    put_size(batch, LABELLED, labels.at != NULL);
    batch->labelled |= labels.at != NULL;
    return true;
}

/* Decode the payload `example` into the next row; false, and the row is spoilt, if it is irregular. */
static bool decode_row(Span example, Batch *batch) {
    Span found[MAX_INPUTS + 2], id, labels;
    if (!find_features(example, batch->inputs, batch->count, found)) return false;
    id = found[batch->count], labels = found[batch->count + 1];
    if (!is_plain(id, labels)) return false;
    for (int64_t i = 0; i < batch->count; i++) {
        int64_t width = 4 * batch->inputs[i].width;
        if (!copy_finite(found[i].at, batch->rows[i] + batch->row * width, width)) return false;
    }
    return put_names(batch, id, labels);
}

/* Leave the next row out. */
static void leave_row(Batch *batch) {
    for (int kind = ID; kind <= LABELLED; kind++) put_size(batch, kind, 0);
    batch->left = true;
}

/* Decode the whole records at the start of `size` bytes that start before byte `stop`, as far as there are rows; how
 * many bytes they have. */
static int64_t decode_rows(const uint8_t *block, int64_t size, int64_t stop, Batch *batch) {
    int64_t place = 0;
    while (batch->row < batch->last) {
        int64_t left = batch->last - batch->row, places[TOGETHER + 1], most = left < TOGETHER ? left : TOGETHER, i = 0;
        uint8_t bad[TOGETHER];
        const uint8_t *from = block + place;
        int64_t some = find_records(from, size - place, stop - place, most, places);
        check_payloads(from, places, some, bad);
        for (; i < some; i++, batch->row++) {
            Span example = {from + places[i] + HEADER, from + places[i + 1] - FOOTER};
            if (bad[i] || !decode_row(example, batch)) leave_row(batch);
            if (batch->left && batch->plain) break;
            put_size(batch, RECORD, places[i + 1] - places[i]);
        }
        place += places[i];
        if (i < most) break;
    }
    batch->bytes += place;
    return place;
}

/* Read `size` bytes from `offset` on; false if they are not to be had, and why will be seen by who reads them again. */
static bool read_all(int file, uint8_t *to, int64_t size, int64_t offset) {
    while (size) {
        ssize_t more = pread(file, to, size, offset);
        if (more < 0 && errno == EINTR) continue;
        if (more <= 0) return false;
        to += more, size -= more, offset += more;
    }
    return true;
}

/* Decode whole records from byte `offset` of the file on, those that start before byte `stop` and end before byte `end`,
 * by way of the block of `room` bytes.
 *
 * That ends where the rows are full, with a part that left a record out, with `enough` bytes of labels, and before what
 * cannot be read or is no whole record. Returns where in the file the bytes that are in the block then start. */
static int64_t decode_from(int file, int64_t offset, int64_t stop, int64_t end, uint8_t *block, int64_t room,
                           int64_t enough, Batch *batch) {
    int64_t start = offset, at_once = AT_ONCE < room ? AT_ONCE : room, near = end - stop > BEYOND ? stop + BEYOND : end;
    while (batch->row < batch->last && offset < stop && offset < end && !batch->left && batch->labels.size < enough) {
        int64_t size = near - offset < at_once ? near - offset : at_once;
        if (!read_all(file, block, size, offset)) break;
        start = offset;
        offset += decode_rows(block, size, stop - offset, batch);
        if (offset > start) continue;
        if (size == end - offset || (at_once == room && near == end)) break;
        at_once = room, near = end; /* a long record */
    }
    return start;
}

/* ---- frame-level records: tf.SequenceExamples ----
 *
 *     0A len { context: entries as in a tf.Example }  12 len { 0A len { 0A len name  12 len { 0A len frame, ... } } ... }
 *
 * The input mean_X is the mean of the frames in list X, each of which is a Feature of one string of bytes. What is asked
 * for must be of exactly this form; all else is stepped over, whatever it is. */

enum { MEAN = 5 }; /* bytes of "mean_" */
enum { SUMMED = 256, ROWS = 8 }; /* rows of bytes whose sums a uint16 holds; rows that are added up before they are put there */

/* Add up column by column `count` rows of bytes that lie `stride` apart: in 16 bits as far as these go, which the
 * compiler makes vectors of. */
static void sum_rows(const uint8_t *rows, int64_t stride, int64_t count, int64_t width, uint8_t *sums) {
    enum { AT_A_TIME = 512 };
    uint16_t some[AT_A_TIME];
    for (int64_t left = 0; left < width; left += AT_A_TIME) {
        int64_t columns = width - left < AT_A_TIME ? width - left : AT_A_TIME;
        for (int64_t row = 0; row < count;) {
            const uint8_t *from = rows + row * stride + left;
            int64_t last = count - row < SUMMED ? count : row + SUMMED;
            memset(some, 0, sizeof some);
            for (; last - row >= ROWS; row += ROWS, from += ROWS * stride)
                for (int64_t i = 0; i < columns; i++)
                    some[i] += from[i] + from[stride + i] + from[2 * stride + i] + from[3 * stride + i] +
                               from[4 * stride + i] + from[5 * stride + i] + from[6 * stride + i] + from[7 * stride + i];
            for (; row < last; row++, from += stride)
                for (int64_t i = 0; i < columns; i++) some[i] += from[i];
            for (int64_t i = 0; i < columns; i++) {
                uint32_t sum = u32(sums + 4 * (left + i)) + some[i];
                memcpy(sums + 4 * (left + i), &sum, sizeof sum);
            }
        }
    }
}

static Head head_of(uint64_t width) {
    Head head = {.size = 0};
    for (int level = 0; level < 3; level++) { /* the data, the list of bytes, the frame */
        uint8_t before[HEAD] = {FIELD_1};
        int64_t size = 1;
        uint64_t length = width + (uint64_t)head.size;
        for (; length >= 0x80; length >>= 7) before[size++] = (uint8_t)(length | 0x80);
        before[size++] = (uint8_t)length;
        memcpy(before + size, head.bytes, head.size);
        head.size += size;
        memcpy(head.bytes, before, head.size);
    }
    return head;
}

/* How many frames there are: each `header` and then `width` bytes; -1 if they are anything else. */
static int64_t count_frames(Span frames, Span header, int64_t width) {
    int64_t size = header.end - header.at, stride = size + width;
    if (!stride || (frames.end - frames.at) % stride) return -1;
    int64_t count = (frames.end - frames.at) / stride;
    for (int64_t i = 0; i < count; i++)
        if (memcmp(frames.at + i * stride, header.at, size)) return -1;
    return count;
}

/* Find the id and the labels among the features of a record, as `find_frames`. */
static bool find_names(Span context, const Batch *batch, Span *found) {
    while (context.at < context.end) {
        Span key, feature, data;
        if (!take_entry(&context, &key, &feature)) return false;
        int64_t column = column_of(key, batch->inputs, batch->count);
        if (column < 0 || (column < batch->count && batch->beside_means)) continue;
        if (column < batch->count || found[column].at) return false;
        if (!enter_column(feature, column, batch->inputs, batch->count, &data)) return false;
        found[column] = data;
    }
    return found[batch->count].at != NULL;
}

static bool find_lists(Span lists, const Batch *batch, Span *found) {
    while (lists.at < lists.end) {
        Span key, frames;
        if (!take_entry(&lists, &key, &frames)) return false;
        for (int64_t i = 0; i < batch->count; i++) {
            Input mean = batch->inputs[i];
            if (!is_named(key, mean.name + MEAN, mean.size - MEAN)) continue;
            if (found[i].at) return false;
            found[i] = frames;
        }
    }
    for (int64_t i = 0; i < batch->count; i++)
        if (!found[i].at) return false;
    return true;
}

/* What one record's row is made of, in the order of `found`: the inputs' frames, the id, the labels. False for a record
 * that is in any way irregular, which may still be a good one. */
static bool find_frames(Span record, const Batch *batch, Span *found) {
    Span context = {NULL, NULL}, lists = {NULL, NULL};
    for (int64_t i = 0; i < batch->count + 2; i++) found[i] = (Span){NULL, NULL};
    while (record.at < record.end) {
        uint8_t tag = *record.at;
        Span *part = tag == FIELD_1 ? &context : &lists;
        if ((tag != FIELD_1 && tag != FIELD_2) || part->at || !take(&record, tag, part)) return false;
    }
    return find_names(context, batch, found) && find_lists(lists, batch, found);
}

static bool is_printable_ascii(Span text) {
    for (; text.at < text.end; text.at++)
        if (*text.at < ' ' || *text.at > '~') return false;
    return true;
}

/* Put the mean of frames of bytes into `to`, float32 (width,): as scorer.inputs.frames.dequantised has it, to the bit. */
static void put_mean(const uint8_t *frames, int64_t header, int64_t count, int64_t width, uint8_t *to) {
    double scale = 4.0 / 255 / (double)count, shift = 4.0 / 512 - 2;
    memset(to, 0, 4 * width); /* the sums, at first */
    sum_rows(frames + header, header + width, count, width, to);
    for (int64_t i = 0; i < width; i++) {
        float mean = (float)((int32_t)u32(to + 4 * i) * scale + shift); /* rounded twice: compiled without contraction */
        memcpy(to + 4 * i, &mean, sizeof mean);
    }
}

/* Decode the payload `record` into the next row; false, and the row is spoilt, if it is irregular. */
static bool decode_means(Span record, Batch *batch) {
    Span found[MAX_INPUTS + 2];
    int64_t counts[MAX_INPUTS], least = INT64_MAX, most = 0;
    if (!find_frames(record, batch, found)) return false;
    Span id = found[batch->count], labels = found[batch->count + 1];
    if (!is_printable_ascii(id) || !are_varints(labels)) return false;
    for (int64_t i = 0; i < batch->count; i++) {
        const Input *input = batch->inputs + i;
        counts[i] = count_frames(found[i], (Span){input->head.bytes, input->head.bytes + input->head.size}, input->width);
        if (counts[i] < 1) return false;
        if (counts[i] < least) least = counts[i];
        if (counts[i] > most) most = counts[i];
        if (most - least > MOST_APART) return false;
    }
    for (int64_t i = 0; i < batch->count; i++) {
        const Input *input = batch->inputs + i;
        uint8_t *to = batch->rows[i] + batch->row * 4 * input->width;
        put_mean(found[i].at, input->head.size, counts[i], input->width, to);
    }
    return put_names(batch, id, labels);
}

/* As `decode_from`, of frame-level records, which are long: each is read by itself, with the next one's header. It stays
 * in the core's own cache until it is decoded. */
static int64_t decode_frames_from(int file, int64_t offset, int64_t stop, int64_t end, uint8_t *block, int64_t room,
                                  int64_t enough, Batch *batch) {
    int64_t start = offset, read = 0; /* of the next header */
    uint8_t header[HEADER];
    while (batch->row < batch->last && offset < stop && !batch->left && batch->labels.size < enough) {
        int64_t left = end - offset < room ? end - offset : room;
        if (left < HEADER + FOOTER || (!read && !read_all(file, header, HEADER, offset))) break;
        uint64_t length = u64(header);
        if (length > (uint64_t)(left - HEADER - FOOTER) || !is_header(header)) break;
        int64_t size = HEADER + (int64_t)length + FOOTER;
        read = left - size < HEADER ? 0 : HEADER;
        if (!read_all(file, block + HEADER, size - HEADER + read, offset + HEADER)) break;
        memcpy(header, block + size, read);
        Span record = {block + HEADER, block + size - FOOTER};
        if (masked(~crc_bytes(~0u, record.at, record.end)) != u32(record.end) || !decode_means(record, batch))
            leave_row(batch);
        put_size(batch, RECORD, size);
        batch->row++, batch->bytes += size;
        start = offset, offset += size;
    }
    return start;
}

/* ---- several files, one after the other ---- */

enum { SEARCHED = 1 << 13 }; /* bytes at a time that a record is looked for in */

/* As it was when it was found. The time of its last change: seconds, and nanoseconds beyond them. */
typedef struct { const char *path; int64_t size, seconds, nanoseconds; } File;

#ifdef __APPLE__
#define MODIFIED(status) ((status)->st_mtimespec)
#else
#define MODIFIED(status) ((status)->st_mtim)
#endif

static bool is_same(const struct stat *now, const File *file) {
    return now->st_size == file->size && MODIFIED(now).tv_sec == file->seconds &&
           MODIFIED(now).tv_nsec == file->nanoseconds;
}

/* -1 where the file is not what it was. */
static int open_file(const File *file) {
    struct stat status;
    int descriptor = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe would wait */
    if (descriptor < 0 || (!fstat(descriptor, &status) && is_same(&status, file))) return descriptor;
    close(descriptor);
    return -1;
}

/* Where the first record from byte `offset` of a TFRecord file on and before byte `stop` starts, by all appearances; -1
 * if none does, or it is no such file. */
static int64_t find_record_in(const File *file, int64_t offset, int64_t stop, uint8_t *block, int64_t room) {
    int64_t last = stop < file->size - HEADER ? stop : file->size - HEADER, found = -1;
    int descriptor = open_file(file);
    if (descriptor < 0) return -1;
    if (!read_all(descriptor, block, HEADER, 0) || !is_header(block)) last = 0;
    while (found < 0 && offset < last) {
        int64_t places = last - offset < SEARCHED ? last - offset : SEARCHED;
        if (places > room - HEADER) places = room - HEADER;
        if (!read_all(descriptor, block, places + HEADER - 1, offset)) break;
        for (int64_t i = 0; found < 0 && i < places; i++)
            if (is_header(block + i)) found = offset + i;
        offset += places;
    }
    close(descriptor);
    return found;
}

/* Whether a file starts with a record that is regular, as far as its CRC is not asked, and that has no frames: nothing
 * but the two bytes of an empty field of them, which YouTube-8M's have: as scorer.inputs.frames.frames_in tells. */
static bool starts_plainly(int file, int64_t size, uint8_t *block, int64_t room, const Batch *batch) {
    int64_t places[2], head = BEYOND < room ? BEYOND : room;
    Span example, features, found[MAX_INPUTS + 2];
    if (head > size) head = size;
    if (!read_all(file, block, head, 0) || !find_records(block, head, head, 1, places)) return false;
    example = (Span){block + HEADER, block + places[1] - FOOTER};
    if (!find_features(example, batch->inputs, batch->count, found) || !take(&example, FIELD_1, &features)) return false;
    return example.at == example.end || (example.end - example.at == 2 && !memcmp(example.at, "\x12", 2));
}

typedef struct {
    int64_t count, offset; /* files that were read to their ends and are what they were; of the next one, the byte read up to */
    int64_t records[MAX_FILES]; /* of each, and of the next one */
    bool changed;               /* whether the next one was read to its end too, and is not what it was */
} Done;

/* Decode the plain records of a file, from byte `*offset` of it on, that start before byte `stop`; whether it ends there. */
static bool decode_file(const File *file, int64_t *offset, int64_t stop, uint8_t *block, int64_t room, int64_t enough,
                        Batch *batch) {
    int64_t before = batch->bytes;
    int descriptor = open_file(file);
    if (descriptor < 0) return false;
    bool plain = starts_plainly(descriptor, file->size, block, room, batch);
    if (plain) decode_from(descriptor, *offset, stop, file->size, block, room, enough, batch);
    close(descriptor);
    *offset += batch->bytes - before;
    return plain && *offset == file->size;
}

/* Decode the plain records of `count` files, from byte `offset` of the first one on, that start before byte `stop` of
 * the last one. That ends where the rows are full, with `enough` bytes of labels, and before whatever is not plain. */
static Done decode_plain(const File *files, int64_t count, int64_t offset, int64_t stop, uint8_t *block, int64_t room,
                         int64_t enough, Batch *batch) {
    Done done = {.offset = offset};
    struct stat status;
    for (; done.count < count; done.count++) {
        const File *file = files + done.count;
        int64_t first = batch->row, until = done.count + 1 < count ? file->size : stop;
        done.records[done.count] = 0;
        if (batch->row == batch->last || batch->labels.size >= enough) break;
        bool ended = decode_file(file, &done.offset, until, block, room, enough, batch);
        done.records[done.count] = batch->row - first;
        done.changed = ended && (stat(file->path, &status) || !is_same(&status, file));
        if (!ended || done.changed) break;
        done.offset = 0;
    }
    return done;
}

/* ---- Python's side ---- */

static PyObject *wrong(const char *what) { PyErr_SetString(PyExc_ValueError, what); return NULL; }

/* The names and widths in a tuple of (bytes, int); of means alone, where these are wanted. */
static Py_ssize_t read_inputs(PyObject *given, Input *inputs, bool means) {
    Py_ssize_t count = PyTuple_Size(given);
    if (count > MAX_INPUTS) { wrong("too many inputs"); return -1; }
    for (Py_ssize_t i = 0; i < count; i++) {
        char *name;
        PyObject *pair = PyTuple_GetItem(given, i), *key = NULL, *width = NULL;
        if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2) { wrong("an input is no pair"); return -1; }
        key = PyTuple_GetItem(pair, 0), width = PyTuple_GetItem(pair, 1);
        if (PyBytes_AsStringAndSize(key, &name, &inputs[i].size) < 0) return -1;
        if (means && (inputs[i].size < MEAN || memcmp(name, "mean_", MEAN))) { wrong("an input is no mean"); return -1; }
        inputs[i].name = name;
        inputs[i].width = PyLong_AsLongLong(width);
        if (PyErr_Occurred()) return -1;
        if (means) inputs[i].head = head_of((uint64_t)inputs[i].width);
    }
    return count;
}

static Span span_of(const Py_buffer *buffer) {
    const uint8_t *at = buffer->buf;
    return (Span){at, at + buffer->len};
}

/* Strings, one after the other, and an int64 size for each: scorer.kernels.packed.PackedStrings. */
typedef struct { Span left; const uint8_t *sizes; int64_t count; } Strings;

static Strings strings_of(const Py_buffer *data, const Py_buffer *sizes) {
    return (Strings){span_of(data), sizes->buf, sizes->len / 8};
}

/* Take the next string off; false if its size is not one. */
static bool take_string(Strings *strings, Span *string) {
    int64_t size = i64(strings->sizes);
    if (size < 0 || size > strings->left.end - strings->left.at) return false;
    string->at = strings->left.at;
    string->end = strings->left.at += size;
    strings->sizes += 8;
    return true;
}

/* The most bytes that a string has; -1 if the sizes are none. */
static int64_t longest(Strings strings) {
    int64_t most = 0;
    Span string;
    while (strings.count--) {
        if (!take_string(&strings, &string)) return -1;
        if (string.end - string.at > most) most = string.end - string.at;
    }
    return most;
}

/* k, for labels int64 (count, k) and scores float32 (count, k); -1 for others. */
static int64_t width_of(const Py_buffer *labels, const Py_buffer *scores, int64_t count) {
    int64_t k = count ? labels->len / 8 / count : 0;
    return labels->len == 8 * k * count && scores->len == 4 * k * count ? k : -1;
}

/* Where records are decoded to, while Python's buffers are held for it. */
typedef struct {
    Py_buffer block, sizes, features[MAX_INPUTS];
    Py_ssize_t held; /* of the features */
    Input inputs[MAX_INPUTS];
    uint8_t *rows[MAX_INPUTS];
    Batch batch;
} Target;

static void release(Target *target) {
    free(target->batch.ids.data);
    free(target->batch.labels.data);
    while (target->held) PyBuffer_Release(&target->features[--target->held]);
    PyBuffer_Release(&target->block);
    PyBuffer_Release(&target->sizes);
}

/* Make a batch of the rows first..last-1 of `arrays`, where `block` and `sizes` are held; else those are released. means:
 * whether the inputs are to be those of `read_inputs`. */
static bool hold(Target *target, PyObject *inputs, PyObject *arrays, Py_ssize_t first, Py_ssize_t last, bool means) {
    Py_ssize_t count = read_inputs(inputs, target->inputs, means), most = target->sizes.len / 8 / SIZES;
    bool fits = count >= 0 && PyTuple_Size(arrays) == count && 0 <= first && first <= last && last <= most;
    target->batch = (Batch){.inputs = target->inputs, .count = count, .row = first, .last = last, .most = most,
                            .rows = target->rows, .sizes = target->sizes.buf};
    for (target->held = 0; fits && target->held < count;) {
        Py_buffer *values = &target->features[target->held];
        int64_t width = target->inputs[target->held].width;
        if (PyObject_GetBuffer(PyTuple_GetItem(arrays, target->held), values, PyBUF_WRITABLE) < 0) break;
        target->rows[target->held++] = values->buf;
        fits = width >= 0 && (!width || values->len / 4 / width >= most);
    }
    if (fits && target->held == count) return true;
    if (!PyErr_Occurred()) wrong("buffers of other sizes");
    release(target);
    return false;
}

/* What `decode` returns. */
static PyObject *decoded(const Batch *batch, int64_t first, int64_t start) {
    const Text *ids = &batch->ids, *labels = &batch->labels;
    PyObject *where = batch->left ? PyLong_FromLongLong(start) : Py_NewRef(Py_None);
    return Py_BuildValue("Ly#y#LNN", (long long)(batch->row - first), ids->size ? (char *)ids->data : "",
                         (Py_ssize_t)ids->size, labels->size ? (char *)labels->data : "", (Py_ssize_t)labels->size,
                         (long long)batch->bytes, PyBool_FromLong(batch->labelled), where);
}

typedef int64_t Reading(int, int64_t, int64_t, int64_t, uint8_t *, int64_t, int64_t, Batch *);

static PyObject *decode_with(Reading *read, bool frames, bool beside_means, PyObject *args) {
    Target target;
    Py_ssize_t offset, stop, end, first, last, enough;
    PyObject *inputs, *arrays, *result;
    int file;
    if (!PyArg_ParseTuple(args, "innnw*O!O!nnw*n", &file, &offset, &stop, &end, &target.block, &PyTuple_Type, &inputs,
                          &PyTuple_Type, &arrays, &first, &last, &target.sizes, &enough) ||
        !hold(&target, inputs, arrays, first, last, frames))
        return NULL;
    if (offset < 0 || stop < 0 || end < 0) result = wrong("a place before the file");
    else {
        int64_t start;
        target.batch.beside_means = beside_means;
        Py_BEGIN_ALLOW_THREADS
        start = read(file, offset, stop, end, target.block.buf, target.block.len, enough, &target.batch);
        Py_END_ALLOW_THREADS
        result = target.batch.no_memory ? PyErr_NoMemory() : decoded(&target.batch, first, start);
    }
    release(&target);
    return result;
}

static PyObject *decode(PyObject *self, PyObject *args) { return decode_with(decode_from, false, false, args); }
static PyObject *decode_frames(PyObject *self, PyObject *args) { return decode_with(decode_frames_from, true, true, args); }
static PyObject *decode_bare_frames(PyObject *self, PyObject *args) {
    return decode_with(decode_frames_from, true, false, args);
}

/* The paths, sizes and times in a tuple of (bytes, int, int, int). */
static Py_ssize_t read_files(PyObject *given, File *files) {
    Py_ssize_t count = PyTuple_Size(given), length;
    if (count > MAX_FILES) { wrong("too many files"); return -1; }
    for (Py_ssize_t i = 0; i < count; i++) {
        char *path;
        PyObject *file = PyTuple_GetItem(given, i);
        if (!PyTuple_Check(file) || PyTuple_Size(file) != 4) { wrong("a file is no tuple of four"); return -1; }
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(file, 0), &path, &length) < 0) return -1;
        if ((Py_ssize_t)strlen(path) != length) { wrong("NUL in a path"); return -1; }
        files[i].path = path;
        files[i].size = PyLong_AsLongLong(PyTuple_GetItem(file, 1));
        files[i].seconds = PyLong_AsLongLong(PyTuple_GetItem(file, 2));
        files[i].nanoseconds = PyLong_AsLongLong(PyTuple_GetItem(file, 3));
        if (PyErr_Occurred()) return -1;
    }
    return count;
}

/* What `decode_files` returns of `count` files. */
static PyObject *decoded_files(const Batch *batch, const Done *done, int64_t count) {
    const Text *ids = &batch->ids, *labels = &batch->labels;
    PyObject *records = PyList_New(0);
    for (int64_t i = 0; records && i < count && i <= done->count; i++) {
        PyObject *number = PyLong_FromLongLong(done->records[i]);
        if (!number || PyList_Append(records, number) < 0) Py_CLEAR(records);
        Py_XDECREF(number);
    }
    if (!records) return NULL;
    return Py_BuildValue("LNNLy#y#N", (long long)done->count, PyBool_FromLong(done->changed), records,
                         (long long)done->offset, ids->size ? (char *)ids->data : "", (Py_ssize_t)ids->size,
                         labels->size ? (char *)labels->data : "", (Py_ssize_t)labels->size,
                         PyBool_FromLong(batch->labelled));
}

static PyObject *decode_files(PyObject *self, PyObject *args) {
    Target target;
    Py_ssize_t offset, stop, first, last, enough;
    PyObject *given, *inputs, *arrays, *result = NULL;
    File files[MAX_FILES];
    if (!PyArg_ParseTuple(args, "O!nnw*O!O!nnw*n", &PyTuple_Type, &given, &offset, &stop, &target.block, &PyTuple_Type,
                          &inputs, &PyTuple_Type, &arrays, &first, &last, &target.sizes, &enough) ||
        !hold(&target, inputs, arrays, first, last, false))
        return NULL;
    Batch *batch = &target.batch;
    Py_ssize_t count = read_files(given, files);
    if (count >= 0 && (offset < 0 || stop < 0)) wrong("a place before the file");
    else if (count >= 0) {
        Done done;
        batch->plain = true;
        Py_BEGIN_ALLOW_THREADS
        done = decode_plain(files, count, offset, stop, target.block.buf, target.block.len, enough, batch);
        Py_END_ALLOW_THREADS
        result = batch->no_memory ? PyErr_NoMemory() : decoded_files(batch, &done, count);
    }
    release(&target);
    return result;
}

static PyObject *find_record(PyObject *self, PyObject *args) {
    Py_buffer block;
    Py_ssize_t offset, stop;
    PyObject *given, *result = NULL;
    File file[MAX_FILES];
    if (!PyArg_ParseTuple(args, "O!nnw*", &PyTuple_Type, &given, &offset, &stop, &block)) return NULL;
    Py_ssize_t count = read_files(given, file);
    if (count >= 0 && (count != 1 || offset < 0 || block.len <= HEADER)) wrong("not one file, no place in it, or no room");
    else if (count >= 0) {
        int64_t found;
        Py_BEGIN_ALLOW_THREADS
        found = find_record_in(file, offset, stop, block.buf, block.len);
        Py_END_ALLOW_THREADS
        result = PyLong_FromLongLong(found);
    }
    PyBuffer_Release(&block);
    return result;
}

static PyObject *find_header(PyObject *self, PyObject *args) {
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "y*", &data)) return NULL;
    Py_ssize_t place = 0, last = data.len - HEADER;
    Py_BEGIN_ALLOW_THREADS
    while (place <= last && !is_header((const uint8_t *)data.buf + place)) place++;
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyLong_FromSsize_t(place <= last ? place : -1);
}

/* ---- predictions ---- */

/* Whether k labels are all below `count`, with scores in [0, 1] that nowhere rise. */
static bool is_ranked(const uint8_t *labels, const uint8_t *scores, int64_t k, uint64_t count) {
    float before = 1;
    bool bad = false;
    for (int64_t i = 0; i < k; i++) {
        float score = f32(scores + 4 * i);
        bad |= u64(labels + 8 * i) >= count || !(score >= 0 && score <= before); /* NaN is neither */
        before = score;
    }
    return !bad;
}

enum { FEW_LABELS = 64 }; /* so many are compared with each other faster than they are marked */

/* Whether no two of k labels are the same. seen: for more than FEW_LABELS, a bit for each label there is, all clear. */
static bool are_distinct(const uint8_t *labels, int64_t k, uint8_t *seen) {
    bool twice = false;
    if (k <= FEW_LABELS) {
        for (int64_t i = 1; i < k; i++)
            for (int64_t j = 0; j < i; j++) twice |= u64(labels + 8 * i) == u64(labels + 8 * j);
        return !twice;
    }
    for (int64_t i = 0; i < k; i++) {
        uint64_t label = u64(labels + 8 * i);
        twice |= seen[label / 8] >> label % 8 & 1;
        seen[label / 8] |= 1 << label % 8;
    }
    for (int64_t i = 0; i < k; i++) seen[u64(labels + 8 * i) / 8] = 0;
    return !twice;
}

static PyObject *check_predictions(PyObject *self, PyObject *args) {
    Py_buffer labels, scores;
    Py_ssize_t count, rows;
    if (!PyArg_ParseTuple(args, "y*y*nn", &labels, &scores, &rows, &count)) return NULL;
    int64_t k = rows >= 0 ? width_of(&labels, &scores, rows) : -1, row = k ? 0 : rows; /* of nothing any number is good */
    bool fits = k >= 0 && count >= 0;
    uint8_t *seen = fits && k > FEW_LABELS ? calloc(count / 8 + 1, 1) : NULL;
    bool no_memory = fits && k > FEW_LABELS && !seen;
    if (fits && !no_memory) {
        const uint8_t *label = labels.buf, *score = scores.buf;
        Py_BEGIN_ALLOW_THREADS
        for (; row < rows; row++, label += 8 * k, score += 4 * k)
            if (!is_ranked(label, score, k, count) || !are_distinct(label, k, seen)) break;
        Py_END_ALLOW_THREADS
    }
    free(seen);
    PyBuffer_Release(&labels); PyBuffer_Release(&scores);
    if (no_memory) return PyErr_NoMemory();
    return fits ? PyLong_FromLongLong(row < rows ? row : -1) : wrong("buffers of other sizes");
}

/* ---- metrics ---- */

enum { HALF_BINS = 0x3f000000 >> BIN_SHIFT, BINS = 2 * HALF_BINS + 2 };

/* The histogram's bin of a score; BINS or more if it is not in [0, 1]. */
static uint32_t bin_of(float score) {
    bool upper = score >= 0.5f;
    float less = upper ? 1 - score : score + 0.0f; /* -0 becomes 0 */
    uint32_t bits;
    memcpy(&bits, &less, sizeof bits);
    bits >>= BIN_SHIFT;
    return bits > HALF_BINS ? BINS : upper ? BINS - 1 - bits : bits;
}

/* Add to one of many int64 counts. */
static void add(uint8_t *counts, int64_t index, uint64_t more) {
    put_i64(counts + 8 * index, (int64_t)(u64(counts + 8 * index) + more));
}

/* Count one video's metric record: int32 positives, float32 (k,) scores, bool (k,) hits. False if it is none. */
static bool count_video(const uint8_t *record, int64_t k, int64_t depth, uint8_t *up_to, uint8_t *first,
                        uint8_t *histogram) {
    int64_t positives = (int32_t)u32(record), so_far = 0, row = positives < depth ? positives : depth;
    const uint8_t *scores = record + 4, *hits = scores + 4 * k;
    if (positives < 1) return false;
    for (int64_t i = 0; i < k; i++) {
        uint32_t bin = bin_of(f32(scores + 4 * i));
        if (bin >= BINS) return false;
        add(histogram, bin, 1);
        if (hits[i]) {
            add(histogram, BINS + bin, 1);
            so_far++;
            if (i < depth) add(up_to, (row - 1) * depth + i, so_far);
        }
        if (i == (positives < k ? positives : k) - 1) add(first, i, so_far);
    }
    return true;
}

static PyObject *count_metrics(PyObject *self, PyObject *args) {
    Py_buffer records, up_to, first, histogram;
    Py_ssize_t k;
    if (!PyArg_ParseTuple(args, "y*nw*w*w*", &records, &k, &up_to, &first, &histogram)) return NULL;
    bool fits = k > 0 && k == first.len / 8;
    int64_t size = fits ? 4 + 5 * k : 1, depth = k < MAP_DEPTH ? k : MAP_DEPTH, positives = 0;
    fits = fits && up_to.len == depth * depth * 8 && histogram.len == 2 * BINS * 8 && records.len % size == 0;
    if (fits) {
        const uint8_t *record = records.buf, *end = record + records.len;
        Py_BEGIN_ALLOW_THREADS
        for (; fits && record < end; record += size) {
            positives += (int32_t)u32(record);
            fits = count_video(record, k, depth, up_to.buf, first.buf, histogram.buf);
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&records); PyBuffer_Release(&up_to); PyBuffer_Release(&first); PyBuffer_Release(&histogram);
    return fits ? PyLong_FromLongLong(positives) : wrong("no such metric records");
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Sort numbers and drop repeated ones; how many are left. */
static int64_t distinct(int64_t *values, int64_t count) {
    int64_t kept = 0, ascending = 1;
    while (ascending < count && values[ascending - 1] < values[ascending]) ascending++;
    if (ascending >= count) return count; /* as in most shards */
    qsort(values, count, sizeof *values, by_value);
    for (int64_t i = 0; i < count; i++)
        if (!kept || values[i] != values[kept - 1]) values[kept++] = values[i];
    return kept;
}

static bool is_among(int64_t value, const int64_t *sorted, int64_t count) {
    while (count > 4) { /* it is in the half from `sorted` on or in the one before, if at all */
        int64_t half = count / 2;
        if (sorted[half] <= value) sorted += half, count -= half;
        else count = half;
    }
    for (int64_t i = 0; i < count; i++)
        if (sorted[i] == value) return true;
    return false;
}

/* Take the next number off packed varints; false without a whole one. */
static bool take_number(Span *packed, uint64_t *value) {
    *value = 0;
    for (int shift = 0; packed->at < packed->end;) {
        uint8_t byte = *packed->at++;
        if (shift < 64) *value |= (uint64_t)(byte & 0x7f) << shift, shift += 7;
        if (byte < 0x80) return true;
    }
    return false;
}

/* The numbers in packed varints; how many. */
static int64_t unpack(Span packed, int64_t *values) {
    int64_t count = 0;
    uint64_t value;
    while (take_number(&packed, &value)) values[count++] = (int64_t)value;
    return count;
}

/* Write the metric record of a video that has labels; returns where the next one goes. */
static uint8_t *put_record(uint8_t *to, const uint8_t *labels, const uint8_t *scores, int64_t k, const int64_t *truth,
                           int64_t count) {
    if (!count) return to;
    int32_t positives = (int32_t)count;
    memcpy(to, &positives, 4);
    memcpy(to + 4, scores, 4 * k);
    to += 4 + 4 * k;
    for (int64_t i = 0; i < k; i++) *to++ = is_among(i64(labels + 8 * i), truth, count);
    return to;
}

/* Write the metric records of all rows; where they end, or NULL if the sizes are none. */
static uint8_t *put_records(uint8_t *to, const uint8_t *labels, const uint8_t *scores, int64_t k, Strings truth,
                            int64_t *values, int64_t most) {
    Span packed;
    while (truth.count--) {
        if (!take_string(&truth, &packed) || packed.end - packed.at > most) return NULL;
        to = put_record(to, labels, scores, k, values, distinct(values, unpack(packed, values)));
        labels += 8 * k, scores += 4 * k;
    }
    return to;
}

static PyObject *metric_records(PyObject *self, PyObject *args) {
    Py_buffer labels, scores, data, sizes;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*y*", &labels, &scores, &data, &sizes)) return NULL;
    Strings truth = strings_of(&data, &sizes);
    int64_t k = width_of(&labels, &scores, truth.count), most = longest(truth);
    bool fits = k >= 0 && most >= 0;
    int64_t *values = fits ? PyMem_Malloc((most + 1) * sizeof *values) : NULL;
    uint8_t *begin = fits ? PyMem_Malloc(truth.count * (4 + 5 * k) + 1) : NULL, *to = begin;
    if (values && begin) {
        Py_BEGIN_ALLOW_THREADS
        to = put_records(begin, labels.buf, scores.buf, k, truth, values, most);
        Py_END_ALLOW_THREADS
        fits = to != NULL;
        if (fits) result = PyBytes_FromStringAndSize((char *)begin, to - begin);
    }
    if (!result && !PyErr_Occurred()) fits ? PyErr_NoMemory() : wrong("buffers of other sizes");
    PyMem_Free(values);
    PyMem_Free(begin);
    PyBuffer_Release(&labels); PyBuffer_Release(&scores); PyBuffer_Release(&data); PyBuffer_Release(&sizes);
    return result;
}

static PyObject *count_unknown(PyObject *self, PyObject *args) {
    Py_buffer data;
    Py_ssize_t labels, unknown = 0;
    if (!PyArg_ParseTuple(args, "y*n", &data, &labels)) return NULL;
    Span packed = span_of(&data);
    uint64_t value;
    Py_BEGIN_ALLOW_THREADS
    while (take_number(&packed, &value)) unknown += value >= (uint64_t)labels;
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyLong_FromSsize_t(unknown);
}

/* ---- keys of ids ---- */

static uint64_t mixed(uint64_t word) {
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
    word = (word ^ word >> 27) * 0x94d049bb133111ebu;
    return word ^ word >> 31;
}

static uint64_t key_of(Span id) {
    uint64_t key = 0;
    for (int64_t byte = 0; byte < id.end - id.at && byte < KEYED_ID_BYTES; byte += 8) {
        uint64_t word = 0;
        memcpy(&word, id.at + byte, id.end - id.at - byte < 8 ? id.end - id.at - byte : 8);
        key += mixed(word ^ (uint64_t)(byte / 8 + 1) * 0x9e3779b97f4a7c15u);
    }
    return key;
}

static PyObject *id_keys(PyObject *self, PyObject *args) {
    Py_buffer data, sizes;
    if (!PyArg_ParseTuple(args, "y*y*", &data, &sizes)) return NULL;
    Strings ids = strings_of(&data, &sizes);
    PyObject *result = PyBytes_FromStringAndSize(NULL, 8 * ids.count);
    uint8_t *to = result ? (uint8_t *)PyBytes_AsString(result) : NULL;
    bool fits = true;
    Span id;
    for (; result && fits && ids.count--; to += 8)
        if ((fits = take_string(&ids, &id))) put_i64(to, (int64_t)key_of(id));
    if (!fits) { Py_CLEAR(result); wrong("buffers of other sizes"); }
    PyBuffer_Release(&data); PyBuffer_Release(&sizes);
    return result;
}

/* ---- rows ---- */

static char thousand[1000][3]; /* "000" to "999" */

static bool is_bare(uint8_t c) {
    return ('0' <= c && c <= '9') || ('A' <= (c & ~0x20) && (c & ~0x20) <= 'Z') || c == '-' || c == '_';
}

/* What an id may not start with in a cell of a spreadsheet, beside signs of ASCII: these bytes, and then one from first
 * to last. As GUARDS in scorer/kernels/numpy_rows.py, which says what each is. */
static const struct { const char *start; uint8_t first, last; } guards[] = {
    {"\xc2", 0x80, 0xa0},         {"\xc2", 0xad, 0xad},         {"\xcd", 0x8f, 0x8f},
    {"\xd8", 0x80, 0x85},         {"\xd8", 0x9c, 0x9c},         {"\xdb", 0x9d, 0x9d},
    {"\xdc", 0x8f, 0x8f},         {"\xe0\xa2", 0x90, 0x91},     {"\xe0\xa3", 0xa2, 0xa2},
    {"\xe1\x85", 0x9f, 0xa0},     {"\xe1\x9a", 0x80, 0x80},     {"\xe1\x9e", 0xb4, 0xb5},
    {"\xe1\xa0", 0x8b, 0x8f},     {"\xe2", 0x80, 0x81},         {"\xe2\x82", 0x8a, 0x8c},
    {"\xe2\x88", 0x92, 0x92},     {"\xe2\xa9", 0xb5, 0xb6},     {"\xe3\x80", 0x80, 0x80},
    {"\xe3\x85", 0xa4, 0xa4},     {"\xef\xac", 0xa9, 0xa9},     {"\xef\xb8", 0x80, 0x8f},
    {"\xef\xb9", 0xa2, 0xa3},     {"\xef\xb9", 0xa6, 0xa6},     {"\xef\xb9", 0xab, 0xab},
    {"\xef\xbb", 0xbf, 0xbf},     {"\xef\xbc", 0x87, 0x87},     {"\xef\xbc", 0x8b, 0x8b},
    {"\xef\xbc", 0x8d, 0x8d},     {"\xef\xbc", 0x9d, 0x9d},     {"\xef\xbc", 0xa0, 0xa0},
    {"\xef\xbe", 0xa0, 0xa0},     {"\xef\xbf", 0xb0, 0xbb},     {"\xf0\x91\x82", 0xbd, 0xbd},
    {"\xf0\x91\x83", 0x8d, 0x8d}, {"\xf0\x93\x90", 0xb0, 0xbf}, {"\xf0\x9b\xb2", 0xa0, 0xa3},
    {"\xf0\x9d\x85", 0xb3, 0xba}, {"\xf3", 0xa0, 0xa0},
};

static bool is_guarded(const uint8_t *id, size_t size) {
    if (!size) return false;
    if (*id < 0x80) return *id <= ' ' || *id == 0x7f || memchr("'+-=@", *id, 5);
    for (size_t i = 0; i < sizeof guards / sizeof *guards; i++) {
        size_t length = strlen(guards[i].start);
        if (size > length && !memcmp(id, guards[i].start, length) && id[length] >= guards[i].first &&
            id[length] <= guards[i].last)
            return true;
    }
    return false;
}

/* Write an id as a CSV field: at most 2 size + 3 bytes. */
static char *put_id(char *to, const uint8_t *id, int64_t size) {
    int64_t bare = 0;
    while (bare < size && is_bare(id[bare])) bare++;
    if (size && bare == size) { memcpy(to, id, size); return to + size; }
    *to++ = '"';
    if (is_guarded(id, size)) *to++ = '\'';
    for (int64_t i = 0; i < size; i++) {
        if (id[i] == '"') *to++ = '"';
        *to++ = (char)id[i];
    }
    *to++ = '"';
    return to;
}

static char *put_number(char *to, uint64_t number) {
    if (number >= 1000) {
        to = put_number(to, number / 1000);
        memcpy(to, thousand[number % 1000], 3);
        return to + 3;
    }
    int zeros = number < 10 ? 2 : number < 100;
    memcpy(to, thousand[number] + zeros, 3 - zeros);
    return to + 3 - zeros;
}

/* Write a row, at most 2 size + 5 + 30 k bytes; NULL if a score is not in [0, 1]. */
static char *put_row(char *to, Span id, const uint8_t *labels, const uint8_t *scores, int64_t k) {
    to = put_id(to, id.at, id.end - id.at);
    *to++ = ',';
    for (int64_t i = 0; i < k; i++) {
        float score = f32(scores + 4 * i);
        int64_t label = i64(labels + 8 * i);
        if (!(score >= 0 && score <= 1)) return NULL;
        if (i) *to++ = ' ';
        if (label < 0) *to++ = '-';
        to = put_number(to, label < 0 ? 0 - (uint64_t)label : (uint64_t)label);
        /* The product is exact, since it has at most 24 + 14 significant bits, and 2^52 has no room for a fraction: the
         * sum rounds it, ties to even, as %f does. */
        uint32_t millionths = (uint32_t)((double)score * 1e6 + 0x1p52 - 0x1p52);
        *to++ = ' ';
        *to++ = '0' + (char)(millionths / 1000000);
        *to++ = '.';
        memcpy(to, thousand[millionths / 1000 % 1000], 3);
        memcpy(to + 3, thousand[millionths % 1000], 3);
        to += 6;
    }
    *to++ = '\n';
    return to;
}

/* Write all rows; where they end, or NULL if the sizes are none or a score is not in [0, 1]. */
static char *put_rows(char *to, Strings ids, const uint8_t *labels, const uint8_t *scores, int64_t k) {
    Span id;
    while (to && ids.count--) {
        to = take_string(&ids, &id) ? put_row(to, id, labels, scores, k) : NULL;
        labels += 8 * k, scores += 4 * k;
    }
    return to;
}

static PyObject *format_rows(PyObject *self, PyObject *args) {
    Py_buffer data, sizes, labels, scores;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*y*y*y*", &data, &sizes, &labels, &scores)) return NULL;
    Strings ids = strings_of(&data, &sizes);
    int64_t k = width_of(&labels, &scores, ids.count);
    bool fits = k >= 0;
    char *begin = fits ? PyMem_Malloc(2 * data.len + ids.count * (5 + 30 * k) + 1) : NULL, *to;
    if (begin) {
        Py_BEGIN_ALLOW_THREADS
        to = put_rows(begin, ids, labels.buf, scores.buf, k);
        Py_END_ALLOW_THREADS
        fits = to != NULL;
        if (fits) result = PyBytes_FromStringAndSize(begin, to - begin);
    }
    if (!result && !PyErr_Occurred()) fits ? PyErr_NoMemory() : wrong("no such rows");
    PyMem_Free(begin);
    PyBuffer_Release(&data); PyBuffer_Release(&sizes); PyBuffer_Release(&labels); PyBuffer_Release(&scores);
    return result;
}

/* ---- CRC32C of any bytes: importing the package of that name takes longer than scoring a small shard ---- */

enum { LONG = 1 << 16 }; /* bytes that are worth letting go of the interpreter's lock */

static PyObject *crc32c(PyObject *self, PyObject *args) {
    Py_buffer data;
    unsigned int before = 0;
    if (!PyArg_ParseTuple(args, "y*|I", &data, &before)) return NULL;
    const uint8_t *at = data.buf;
    uint32_t crc;
    if (data.len < LONG) {
        crc = ~crc_bytes(~before, at, at + data.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        crc = ~crc_bytes(~before, at, at + data.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *sum_frames(PyObject *self, PyObject *args) {
    Py_buffer frames, header, sums;
    Py_ssize_t first, last;
    if (!PyArg_ParseTuple(args, "y*y*nnw*", &frames, &header, &first, &last, &sums)) return NULL;
    int64_t width = sums.len / 4, count;
    Py_BEGIN_ALLOW_THREADS
    count = count_frames(span_of(&frames), span_of(&header), width);
    if (last > count) last = count;
    if (0 <= first && first < last) {
        int64_t stride = header.len + width;
        sum_rows((const uint8_t *)frames.buf + first * stride + header.len, stride, last - first, width, sums.buf);
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&frames); PyBuffer_Release(&header); PyBuffer_Release(&sums);
    return PyLong_FromLongLong(count);
}

/* ---- the module; scorer/kernels/native.pyi says what each function takes and gives ---- */

static PyMethodDef methods[] = {
    {"decode", decode, METH_VARARGS, NULL},
    {"decode_frames", decode_frames, METH_VARARGS, NULL},
    {"decode_bare_frames", decode_bare_frames, METH_VARARGS, NULL},
    {"decode_files", decode_files, METH_VARARGS, NULL},
    {"find_record", find_record, METH_VARARGS, NULL},
    {"find_header", find_header, METH_VARARGS, NULL},
    {"check_predictions", check_predictions, METH_VARARGS, NULL},
    {"count_metrics", count_metrics, METH_VARARGS, NULL},
    {"metric_records", metric_records, METH_VARARGS, NULL},
    {"count_unknown", count_unknown, METH_VARARGS, NULL},
    {"id_keys", id_keys, METH_VARARGS, NULL},
    {"format_rows", format_rows, METH_VARARGS, NULL},
    {"crc32c", crc32c, METH_VARARGS, NULL},
    {"sum_frames", sum_frames, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static const struct { const char *name; long value; } limits[] = {
    {"MAX_INPUTS", MAX_INPUTS}, {"MAX_FILES", MAX_FILES}, {"MAX_ID_BYTES", MAX_ID_BYTES}, {"MAX_LABEL_BYTES", MAX_LABEL_BYTES},
    {"KEYED_ID_BYTES", KEYED_ID_BYTES}, {"MAP_DEPTH", MAP_DEPTH}, {"BIN_SHIFT", BIN_SHIFT}, {"HALF_BINS", HALF_BINS},
    {"BINS", BINS}, {"MOST_APART", MOST_APART},
};

static int prepare(PyObject *module) {
    for (int i = 0; i < 1000; i++) {
        const char digits[] = {'0' + i / 100, '0' + i / 10 % 10, '0' + i % 10};
        memcpy(thousand[i], digits, sizeof digits);
    }
    PyObject *known = PyDict_New();
    for (size_t i = 0; known && i < sizeof limits / sizeof *limits; i++) {
        PyObject *value = PyLong_FromLong(limits[i].value);
        if (!value || PyDict_SetItemString(known, limits[i].name, value) < 0) Py_CLEAR(known);
        Py_XDECREF(value);
    }
    if (!known || PyModule_AddObjectRef(module, "LIMITS", known) < 0) { Py_XDECREF(known); return -1; }
    Py_DECREF(known);
    if (!has_crc()) {
        PyErr_SetString(PyExc_ImportError, "this processor has no instruction for CRC32C");
        return -1;
    }
    prepare_stripes();
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, prepare}, {0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "native", "The inner loops in C; see scorer/kernels/native.c.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_native(void) { return PyModuleDef_Init(&module); }
