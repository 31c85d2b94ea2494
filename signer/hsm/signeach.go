package hsm

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>
#include <time.h>

typedef unsigned long ck_ulong;

// CK_FUNCTION_LIST (PKCS#11 v2.40 section 3.6): a CK_VERSION and the functions in the
// order of the specification. On Unix the members are aligned as C does it.
struct functions {
	unsigned char major, minor;
	void (*function[68])(void);
};
enum { C_SIGN_INIT = 42, C_SIGN = 43 };

// CK_MECHANISM (section 3.5).
struct mechanism {
	ck_ulong mechanism;
	void *parameter;
	ck_ulong parameter_length;
};

typedef ck_ulong (*get_function_list)(struct functions **);
typedef ck_ulong (*sign_init)(ck_ulong, struct mechanism *, ck_ulong);
typedef ck_ulong (*sign)(ck_ulong, unsigned char *, ck_ulong, unsigned char *, ck_ulong *);

// functions_of returns the functions of a module that the process has loaded. It returns
// NULL where there are none, and where each caller is given others, as by p11-kit's proxy:
// those would know nothing of the sessions of whoever asked before.
static struct functions *functions_of(const char *path) {
	struct functions *list = NULL, *again = NULL;
	void *module = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
	if (module == NULL) {
		return NULL;
	}
	get_function_list get = (get_function_list)dlsym(module, "C_GetFunctionList");
	if (get == NULL || get(&list) != 0 || get(&again) != 0 || list != again) {
		return NULL;
	}
	return list;
}

static long long now_ns(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// sign_each signs n messages that lie one behind the other in data, and puts each
// signature at the next multiple of size in signatures. It ends at the first failure, and
// begins none after limit nanoseconds: done is how many are signed, initialised whether
// C_SignInit was well in the end.
static ck_ulong sign_each(struct functions *list, ck_ulong session, ck_ulong kind,
		void *parameter, ck_ulong parameter_length, ck_ulong key,
		unsigned char *data, ck_ulong *lengths, ck_ulong n,
		unsigned char *signatures, ck_ulong size, ck_ulong *sizes,
		long long limit, ck_ulong *done, int *initialised) {
	struct mechanism m = {kind, parameter, parameter_length};
	long long end = now_ns() + limit;
	for (*done = 0; *done < n && (*done == 0 || now_ns() < end); (*done)++) {
		ck_ulong rv = ((sign_init)list->function[C_SIGN_INIT])(session, &m, key);
		if ((*initialised = rv == 0)) {
			sizes[*done] = size;
			rv = ((sign)list->function[C_SIGN])(session, data, lengths[*done], signatures, &sizes[*done]);
		}
		if (rv != 0) {
			return rv;
		}
		data += lengths[*done];
		signatures += size;
	}
	return 0;
}
*/
import "C"

import (
	"fmt"
	"slices"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// functions is a module's CK_FUNCTION_LIST.
type functions = C.struct_functions

// functionsOf returns the functions of the module at path, which must be loaded; nil
// where it has none that all callers share.
func functionsOf(path string) *functions {
	name := append([]byte(path), 0)
	return C.functions_of((*C.char)(unsafe.Pointer(&name[0])))
}

// SignEach signs the messages one after the other, by C_SignInit and C_Sign for each,
// in one call through cgo: where the module computes by itself, leaving Go takes as
// long as a good part of a signature, and the thread is mostly taken from it
// meanwhile. size is the most that a signature may have, in octets. After limit it begins
// no other. It returns the signatures that were made, and the failure that ended it.
func (l library) SignEach(s pkcs11.SessionHandle, m *pkcs11.Mechanism, o pkcs11.ObjectHandle, messages [][]byte, size int, limit time.Duration) ([][]byte, error) {
	if l.functions == nil {
		return l.signOneByOne(s, m, o, messages, limit)
	}
	n := len(messages)
	data := make([]byte, 0, 1) // with an address for an empty message too
	lengths, sizes := make([]C.ck_ulong, n), make([]C.ck_ulong, n)
	for i, message := range messages {
		data = append(data, message...)
		lengths[i] = C.ck_ulong(len(message))
	}
	out := make([]byte, n*size)
	var done C.ck_ulong
	var initialised C.int
	rv := C.sign_each(l.functions, C.ck_ulong(s), C.ck_ulong(m.Mechanism),
		unsafe.Pointer(unsafe.SliceData(m.Parameter)), C.ck_ulong(len(m.Parameter)), C.ck_ulong(o),
		(*C.uchar)(unsafe.SliceData(data)), unsafe.SliceData(lengths), C.ck_ulong(n),
		(*C.uchar)(unsafe.SliceData(out)), C.ck_ulong(size), unsafe.SliceData(sizes),
		C.longlong(limit.Nanoseconds()), &done, &initialised)
	signatures := make([][]byte, done)
	for i := range signatures {
		length := int(min(uint64(sizes[i]), uint64(size)))
		signatures[i] = slices.Clip(out[i*size : i*size+length]) // each is its caller's own
	}
	if rv == 0 {
		return signatures, nil
	}
	call := "C_SignInit"
	if initialised != 0 {
		call = "C_Sign"
	}
	return signatures, fmt.Errorf("%s: %w", call, pkcs11.Error(rv))
}

func (l library) signOneByOne(s pkcs11.SessionHandle, m *pkcs11.Mechanism, o pkcs11.ObjectHandle, messages [][]byte, limit time.Duration) (signatures [][]byte, err error) {
	end := time.Now().Add(limit)
	for i, message := range messages {
		if i > 0 && time.Now().After(end) {
			break
		}
		if err := l.SignInit(s, []*pkcs11.Mechanism{m}, o); err != nil {
			return signatures, fmt.Errorf("C_SignInit: %w", err)
		}
		signature, err := l.Sign(s, message)
		if err != nil {
			return signatures, fmt.Errorf("C_Sign: %w", err)
		}
		signatures = append(signatures, signature)
	}
	return signatures, nil
}
