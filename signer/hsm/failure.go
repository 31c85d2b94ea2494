package hsm

import (
	"context"
	"errors"

	"github.com/miekg/pkcs11"
)

// Remedy is what helps against a failure of the token. The set is closed: it is a
// metric label.
type Remedy string

// The remedies, from the least to the most. The first four are applied at once, on
// the session that failed; the next two are the keeper's; the last two are nobody's.
const (
	Retry        Remedy = "retry"        // the same session, once more
	Find         Remedy = "find"         // find the objects again
	LogIn        Remedy = "log_in"       // log in, then find the objects again
	Reopen       Remedy = "reopen"       // a new session
	TakeOut      Remedy = "take_out"     // no work for the token until a test signature succeeds
	Reinitialise Remedy = "reinitialise" // C_Finalize and C_Initialize
	Refuse       Remedy = "refuse"       // the request cannot be done; the token is well
	Fatal        Remedy = "fatal"        // this process must not use the token again
)

// Remedies lists every remedy.
var Remedies = []Remedy{Retry, Find, LogIn, Reopen, TakeOut, Reinitialise, Refuse, Fatal}

// mends reports whether the remedy is applied at once, on the session that failed.
func (r Remedy) mends() bool { return r == Retry || r == Find || r == LogIn || r == Reopen }

// Failures of our own, beside the module's codes.
var (
	errKeyMissing     = errors.New("the token does not hold the key")
	errNoToken        = errors.New("the token is not there")
	errSetupBusy      = errors.New("a login or a search for keys has not come back")
	errAmbiguous      = errors.New("several keys match")
	errWrongSignature = errors.New("the token made a wrong signature")
	errLastPINTry     = errors.New("the token has one try of the PIN left; log in by hand to restore the others")
	errPINLocked      = errors.New("the token's PIN is locked")
	errRefused        = errors.New("the token cannot do this")
)

// ErrClosed is returned for a token after Close.
var ErrClosed = errors.New("the token is closed")

// remedies is the one table of failures. "v2.40" is the PKCS#11 base specification
// v2.40, section 5.1 for the meaning of return values.
var remedies = map[pkcs11.Error]Remedy{
	// v2.40 5.1.6: the function was interrupted or may simply be called again.
	pkcs11.CKR_CANCEL:            Retry,
	pkcs11.CKR_FUNCTION_CANCELED: Retry,
	// v2.40 5.1.3: not enough memory in the device, as for a session copy.
	pkcs11.CKR_DEVICE_MEMORY: Retry,
	// v2.40 5.1.1: the function failed, and nothing says what helps. A new session shows
	// at least whether the login still stands.
	pkcs11.CKR_GENERAL_ERROR:   Reopen,
	pkcs11.CKR_FUNCTION_FAILED: Reopen,
	// v2.40 5.1.1: not enough memory in this computer. NSS softokn says so of a key that
	// it cannot decrypt any more, after a logout (tried: 3.87).
	pkcs11.CKR_HOST_MEMORY: Reopen,

	// v2.40 5.1.6: the handle does not stand for a key or object, as after a logout
	// or a re-connect (NLnetLabs/krill#761, openssl-projects/pkcs11-provider#494).
	pkcs11.CKR_KEY_HANDLE_INVALID:    Find,
	pkcs11.CKR_OBJECT_HANDLE_INVALID: Find,
	pkcs11.CKR_KEY_CHANGED:           Find,

	// v2.40 5.1.6 and 5.6 (C_Login): login is per process and token, and one
	// session's logout is everyone's.
	pkcs11.CKR_USER_NOT_LOGGED_IN: LogIn,

	// v2.40 5.1.2: the session is closed or never was (letsencrypt/boulder#3468,
	// hyperledger/fabric#1022).
	pkcs11.CKR_SESSION_HANDLE_INVALID: Reopen,
	pkcs11.CKR_SESSION_CLOSED:         Reopen,
	// v2.40 5.1.6: an operation was left active or was lost. There is no way to end
	// one but C_Sign or the end of the session.
	pkcs11.CKR_OPERATION_ACTIVE:          Reopen,
	pkcs11.CKR_OPERATION_NOT_INITIALIZED: Reopen,

	// v2.40 5.1.3: "some problem has occurred with the token and/or slot".
	pkcs11.CKR_DEVICE_ERROR: TakeOut,
	// v2.40 5.1.2 and 5.1.3: the token was removed; all its sessions are closed.
	pkcs11.CKR_DEVICE_REMOVED:          TakeOut,
	pkcs11.CKR_TOKEN_NOT_PRESENT:       TakeOut,
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:    TakeOut,
	pkcs11.CKR_FIPS_SELF_TEST_FAILED:   TakeOut,
	pkcs11.CKR_FUNCTION_REJECTED:       TakeOut,
	pkcs11.CKR_USER_TYPE_INVALID:       TakeOut,
	pkcs11.CKR_USER_TOO_MANY_TYPES:     TakeOut,
	pkcs11.CKR_TOKEN_WRITE_PROTECTED:   Refuse,
	pkcs11.CKR_SESSION_READ_ONLY:       Refuse,
	pkcs11.CKR_ACTION_PROHIBITED:       Refuse,
	pkcs11.CKR_ATTRIBUTE_SENSITIVE:     Refuse,
	pkcs11.CKR_ATTRIBUTE_READ_ONLY:     Refuse,
	pkcs11.CKR_ATTRIBUTE_TYPE_INVALID:  Refuse,
	pkcs11.CKR_ATTRIBUTE_VALUE_INVALID: Refuse,

	// v2.40 5.4: someone finalised the module, or a fork lost it (5.4 C_Initialize).
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED: Reinitialise,
	// v2.40 5.5: slots are numbered anew when a module looks again, which some do
	// only in C_Initialize. NSS softokn says so when it is not initialised (tried: 3.87).
	pkcs11.CKR_SLOT_ID_INVALID: Reinitialise,
	// v2.40 5.1.6: no more sessions; those of a lost connection end with C_Finalize.
	pkcs11.CKR_SESSION_COUNT: Reinitialise,
	// v2.40 5.1.5 and C_Initialize: the module's own locks are broken.
	pkcs11.CKR_MUTEX_BAD:        Reinitialise,
	pkcs11.CKR_MUTEX_NOT_LOCKED: Reinitialise,

	// v2.40 5.1.6: the data, the mechanism or the key do not fit together; asking
	// again or elsewhere gives the same answer.
	pkcs11.CKR_ARGUMENTS_BAD:              Refuse,
	pkcs11.CKR_DATA_INVALID:               Refuse,
	pkcs11.CKR_DATA_LEN_RANGE:             Refuse,
	pkcs11.CKR_MECHANISM_INVALID:          Refuse,
	pkcs11.CKR_MECHANISM_PARAM_INVALID:    Refuse,
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:      Refuse,
	pkcs11.CKR_KEY_SIZE_RANGE:             Refuse,
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: Refuse,
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:     Refuse,
	pkcs11.CKR_CURVE_NOT_SUPPORTED:        Refuse,
	pkcs11.CKR_DOMAIN_PARAMS_INVALID:      Refuse,
	pkcs11.CKR_TEMPLATE_INCOMPLETE:        Refuse,
	pkcs11.CKR_TEMPLATE_INCONSISTENT:      Refuse,

	// v2.40 5.6 (C_Login): each wrong PIN counts, and the token locks after a few.
	pkcs11.CKR_PIN_INCORRECT:            Fatal,
	pkcs11.CKR_PIN_INVALID:              Fatal,
	pkcs11.CKR_PIN_LEN_RANGE:            Fatal,
	pkcs11.CKR_PIN_EXPIRED:              Fatal,
	pkcs11.CKR_PIN_LOCKED:               Fatal,
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED: Fatal,
	// v2.40 5.6: the security officer is logged in, by this very process.
	pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN: Fatal,
}

// RemedyFor returns what helps against err, which came from a token. A code that is
// not in the table, a vendor's own for example, gets a new session, and where that
// does not help the breaker counts it. A context that ended, ErrClosed and a request
// that nobody can fulfil are Refuse: they say nothing about the token.
func RemedyFor(err error) Remedy {
	for _, own := range []struct {
		err    error
		remedy Remedy
	}{
		{errWrongSignature, Fatal}, {errLastPINTry, Fatal}, {errPINLocked, Fatal},
		{errNoToken, Reinitialise},
		{errKeyMissing, Find}, // private keys are not to be seen after a logout
		{errAmbiguous, Find},  // SoftHSM shows a session copy in the making as a stored key
		{errHung, TakeOut}, {errModuleDead, TakeOut}, {errSetupBusy, TakeOut},
		{context.Canceled, Refuse}, {context.DeadlineExceeded, Refuse}, {ErrClosed, Refuse}, {errRefused, Refuse},
	} {
		if errors.Is(err, own.err) {
			return own.remedy
		}
	}
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return TakeOut
	}
	if remedy, ok := remedies[code]; ok {
		return remedy
	}
	return Reopen
}
