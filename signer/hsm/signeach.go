package hsm

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stddef.h>

typedef unsigned long ck_ulong;

// CK_FUNCTION_LIST (PKCS#11 v2.40 section 3.6): a CK_VERSION and the functions in the
// order of the specification. On Unix the members are aligned as C does it.
struct functions {
	unsigned char major, minor;
	void (*function[68])(void);
};
enum { C_SIGN_INIT = 42, C_SIGN = 43 };

// CK_MECHANISM (section 3.4).
struct mechanism {
	ck_ulong mechanism;
	void *parameter;
	ck_ulong parameter_length;
};

typedef ck_ulong (*get_function_list)(struct functions **);
typedef ck_ulong (*sign_init)(ck_ulong, struct mechanism *, ck_ulong);
typedef ck_ulong (*sign)(ck_ulong, unsigned char *, ck_ulong, unsigned char *, ck_ulong *);

// functions_of returns the functions of a module that the process has loaded, or NULL.
static struct functions *functions_of(const char *path) {
	struct functions *list = NULL;
	void *module = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
	if (module == NULL) {
		return NULL;
	}
	get_function_list get = (get_function_list)dlsym(module, "C_GetFunctionList");
	if (get == NULL || get(&list) != 0) {
		return NULL;
	}
	return list;
}

// sign_each signs n messages that lie one behind the other in data, and puts each
// signature at the next multiple of size in signatures. It ends at the first failure:
// done is how many are signed, initialised whether C_SignInit was well then.
static ck_ulong sign_each(struct functions *list, ck_ulong session, ck_ulong kind,
		void *parameter, ck_ulong parameter_length, ck_ulong key,
		unsigned char *data, ck_ulong *lengths, ck_ulong n,
		unsigned char *signatures, ck_ulong size, ck_ulong *sizes,
		ck_ulong *done, int *initialised) {
	struct mechanism m = {kind, parameter, parameter_length};
	for (*done = 0; *done < n; (*done)++) {
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
	"unsafe"

	"github.com/miekg/pkcs11"
)

// functions is a module's CK_FUNCTION_LIST.
type functions = C.struct_functions

// functionsOf returns the functions of the module at path, which must be loaded.
func functionsOf(path string) (*functions, error) {
	name := append([]byte(path), 0)
	list := C.functions_of((*C.char)(unsafe.Pointer(&name[0])))
	if list == nil {
		return nil, fmt.Errorf("%s gives no function list", path)
	}
	return list, nil
}

// SignEach signs the messages one after the other, by C_SignInit and C_Sign for each,
// in one call through cgo: where the module computes by itself, leaving Go takes as
// long as a good part of a signature, and the thread is mostly taken from it
// meanwhile. size is that of a signature in octets. It returns the signatures that
// were made before the first failure, and that failure.
func (l library) SignEach(s pkcs11.SessionHandle, m *pkcs11.Mechanism, o pkcs11.ObjectHandle, messages [][]byte, size int) ([][]byte, error) {
	n := len(messages)
	var data []byte
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
		(*C.uchar)(unsafe.SliceData(out)), C.ck_ulong(size), unsafe.SliceData(sizes), &done, &initialised)
	signatures := make([][]byte, done)
	for i := range signatures {
		signatures[i] = out[i*size:][:min(int(sizes[i]), size)]
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
