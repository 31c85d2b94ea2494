package hsm

import (
	"fmt"
	"strings"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// cryptoki is the part of PKCS#11 that is used. A *pkcs11.Ctx has it but for
// Initialize and SignEach; tests wrap it to force what no real module can be made to show.
type cryptoki interface {
	Initialize() error
	Finalize() error
	GetInfo() (pkcs11.Info, error)
	GetSlotList(tokenPresent bool) ([]uint, error)
	GetTokenInfo(slot uint) (pkcs11.TokenInfo, error)
	OpenSession(slot uint, flags uint) (pkcs11.SessionHandle, error)
	CloseSession(s pkcs11.SessionHandle) error
	GetSessionInfo(s pkcs11.SessionHandle) (pkcs11.SessionInfo, error)
	Login(s pkcs11.SessionHandle, userType uint, pin string) error
	FindObjectsInit(s pkcs11.SessionHandle, template []*pkcs11.Attribute) error
	FindObjects(s pkcs11.SessionHandle, limit int) ([]pkcs11.ObjectHandle, bool, error)
	FindObjectsFinal(s pkcs11.SessionHandle) error
	GetAttributeValue(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, a []*pkcs11.Attribute) ([]*pkcs11.Attribute, error)
	GenerateKeyPair(s pkcs11.SessionHandle, m []*pkcs11.Mechanism, public, private []*pkcs11.Attribute) (pkcs11.ObjectHandle, pkcs11.ObjectHandle, error)
	CopyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
	DestroyObject(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) error
	SignEach(s pkcs11.SessionHandle, m *pkcs11.Mechanism, o pkcs11.ObjectHandle, messages [][]byte, size int, limit time.Duration) ([][]byte, error)
}

// library is a loaded PKCS#11 library.
type library struct {
	*pkcs11.Ctx
	functions  *functions // nil: signatures are made through Ctx
	parameters []byte     // for C_Initialize, NUL-terminated; nil for none
}

// loadLibrary loads the library at path. It is never unloaded: modules leave
// threads and exit handlers behind that would then run in freed memory.
func loadLibrary(path, parameters string) (cryptoki, error) {
	ctx := pkcs11.New(path)
	if ctx == nil {
		return nil, fmt.Errorf("%s cannot be loaded: it is missing, needs another library, or is no PKCS#11 module", path)
	}
	list := functionsOf(path)
	if parameters == "" {
		return library{ctx, list, nil}, nil
	}
	return library{ctx, list, append([]byte(parameters), 0)}, nil
}

// Initialize calls C_Initialize with CKF_OS_LOCKING_OK: sessions are used from many threads.
func (l library) Initialize() error {
	if l.parameters == nil {
		return l.Ctx.Initialize()
	}
	return l.Ctx.Initialize(pkcs11.InitializeWithReserved(unsafe.Pointer(&l.parameters[0])))
}

// tokenText cleans a fixed-width field: the specification pads with blanks, some
// modules with NUL.
func tokenText(s string) string { return strings.TrimRight(s, " \x00") }

func cleanTokenInfo(i pkcs11.TokenInfo) pkcs11.TokenInfo {
	i.Label, i.SerialNumber = tokenText(i.Label), tokenText(i.SerialNumber)
	i.ManufacturerID, i.Model = tokenText(i.ManufacturerID), tokenText(i.Model)
	return i
}
