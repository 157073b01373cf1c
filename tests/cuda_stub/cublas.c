/* Stand-in for libcublas: handles and products are logged. Creating a handle allocates, which a capture forbids. */
#include "stub.h"

#include <stdlib.h>

enum { ALLOC_FAILED = 3 };

int cublasCreate_v2(void **handle) {
    if (stub_forbidden("cublasCreate"))
        return ALLOC_FAILED;
    int status = stub_fails("handle");
    if (status)
        return status;
    stub_log("cublasCreate");
    *handle = malloc(1);
    return 0;
}

int cublasDestroy_v2(void *handle) {
    stub_log("cublasDestroy");
    free(handle);
    return 0;
}

const char *cublasGetStatusName(int status) { return status == ALLOC_FAILED ? "CUBLAS_STATUS_ALLOC_FAILED" : "CUBLAS"; }
const char *cublasGetStatusString(int status) { return cublasGetStatusName(status); }

int cublasGetMathMode(void *handle, int *mode) {
    *mode = 0;
    return 0;
}

static int product(const char *call, int m, int n, int k) {
    int status = stub_fails("product");
    if (!status)
        stub_log("%s m=%d n=%d k=%d", call, m, n, k);
    return status;
}

int cublasSgemm_v2(void *handle, int a, int b, int m, int n, int k) {
    return product("cublasSgemm", m, n, k);
}

int cublasGemmEx(void *handle, int a, int b, int m, int n, int k) {
    return product("cublasGemmEx", m, n, k);
}
