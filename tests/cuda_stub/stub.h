/* What the stand-ins share. It lives in the stand-in of libcudart, which the others are linked to. */
#include <stddef.h>

/* The error that call number N of `kind` was told to give (CUDA_STUB_FAIL=kind:N:code), else 0. A code of 700 and more
 * stays: as after a fault on a GPU, every later call of the process gives it too. */
int stub_fails(const char *kind);

/* cudaErrorStreamCaptureUnsupported (900), and every capture is spoilt, where `call` is one that CUDA forbids while any
 * thread captures in global mode; else 0. */
int stub_forbidden(const char *call);

/* Appends "THREAD CALL DETAILS" to the file named by CUDA_STUB_LOG. */
void stub_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
