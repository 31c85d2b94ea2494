/*
 * A PKCS#11 module that stands before another one and misbehaves on command: it is
 * how the tests make a real SoftHSM slow, late, deaf, forgetful, wrong or dead, and
 * how load tests give it the latency and the number of cores of a hardware HSM.
 *
 * Environment (read at the first C_GetFunctionList):
 *   CERTMILL_SHIM_MODULE   the real module
 *   CERTMILL_SHIM_RULES    a file of rules; it is read again whenever it changes
 *   CERTMILL_SHIM_COUNT    a file that grows by one octet per signature made, so that
 *                          the number is known even after the process was killed
 *
 * A rule is one line:  FUNCTION ACTION [VALUE] [after=N] [every=N] [times=N]
 * FUNCTION is a PKCS#11 name or "*". The first "after" calls pass, then every
 * "every"-th call meets the action, "times" times in all (default: from now on).
 *   return CODE        answer CODE without calling the module
 *   call-return CODE   call the module, then answer CODE
 *   delay MS           be late
 *   creep MS           be later by MS with every call
 *   hang               never come back
 *   crash              abort the process
 *   flip               change one bit of the signature
 *   lose-session       close all sessions of the token behind the caller's back
 *   lose-login         log the caller out behind its back
 *   lose-token         the token is not there (until the rule goes)
 *   lose-module        CKR_CRYPTOKI_NOT_INITIALIZED until finalised and initialised
 *   cores N MS         C_Sign takes MS on one of N cores, like a real HSM
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CK_PTR *
#define CK_DECLARE_FUNCTION(ret, name) ret name
#define CK_DECLARE_FUNCTION_POINTER(ret, name) ret(*name)
#define CK_CALLBACK_FUNCTION(ret, name) ret(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

enum action { RETURN, CALL_RETURN, DELAY, CREEP, HANG, CRASH, FLIP, LOSE_SESSION, LOSE_LOGIN, LOSE_TOKEN, LOSE_MODULE, CORES };
static const char *const action_names[] = {"return", "call-return", "delay", "creep", "hang", "crash", "flip",
                                           "lose-session", "lose-login", "lose-token", "lose-module", "cores"};

struct rule {
	char function[48];
	enum action action;
	unsigned long value, value2;
	unsigned long after, every, times; /* times 0: without end */
	unsigned long seen, met;
};

#define MAX_RULES 32
static struct rule rules[MAX_RULES];
static int n_rules;
static struct timespec rules_mtime;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static CK_FUNCTION_LIST_PTR real;
static CK_FUNCTION_LIST shim;
static int module_lost, count_fd = -1;

/* The cores of the modelled HSM. */
static pthread_mutex_t core_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t core_free = PTHREAD_COND_INITIALIZER;
static unsigned long cores_busy;

static void sleep_ms(unsigned long ms)
{
	struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
	while (nanosleep(&t, &t) == -1 && errno == EINTR) {}
}

static int parse(char *line, struct rule *r)
{
	char *save = NULL, *word = strtok_r(line, " \t\r\n", &save);
	if (!word || *word == '#') return 0;
	memset(r, 0, sizeof *r);
	r->every = 1;
	snprintf(r->function, sizeof r->function, "%s", word);
	if (!(word = strtok_r(NULL, " \t\r\n", &save))) return 0;
	size_t a, n = sizeof action_names / sizeof *action_names;
	for (a = 0; a < n && strcmp(word, action_names[a]); a++) {}
	if (a == n) {
		fprintf(stderr, "hsmshim: no such action: %s\n", word);
		return 0;
	}
	r->action = (enum action)a;
	int values = 0;
	while ((word = strtok_r(NULL, " \t\r\n", &save))) {
		if (!strncmp(word, "after=", 6)) r->after = strtoul(word + 6, NULL, 0);
		else if (!strncmp(word, "every=", 6)) r->every = strtoul(word + 6, NULL, 0);
		else if (!strncmp(word, "times=", 6)) r->times = strtoul(word + 6, NULL, 0);
		else if (values++ == 0) r->value = strtoul(word, NULL, 0);
		else r->value2 = strtoul(word, NULL, 0);
	}
	if (r->every == 0) r->every = 1;
	return 1;
}

/* Reads the rules when their file has changed. The caller holds the lock. */
static void reload(void)
{
	const char *path = getenv("CERTMILL_SHIM_RULES");
	struct stat st;
	if (!path || stat(path, &st)) return;
	if (st.st_mtim.tv_sec == rules_mtime.tv_sec && st.st_mtim.tv_nsec == rules_mtime.tv_nsec) return;
	FILE *f = fopen(path, "r");
	if (!f) return;
	rules_mtime = st.st_mtim;
	n_rules = 0;
	char line[256];
	while (n_rules < MAX_RULES && fgets(line, sizeof line, f))
		if (parse(line, &rules[n_rules])) n_rules++;
	fclose(f);
}

struct verdict {
	int answer;      /* answer rv without calling the module */
	int answer_late; /* answer rv after calling the module */
	int flip, hang, crash, close_all, logout;
	unsigned long delay_ms, cores, core_ms;
	CK_RV rv;
};

static struct verdict judge(const char *function)
{
	struct verdict v = {0};
	pthread_mutex_lock(&lock);
	reload();
	for (int i = 0; i < n_rules; i++) {
		struct rule *r = &rules[i];
		if (strcmp(r->function, "*") && strcmp(r->function, function)) continue;
		unsigned long n = r->seen++;
		if (n < r->after || (n - r->after) % r->every || (r->times && r->met >= r->times)) continue;
		r->met++;
		switch (r->action) {
		case RETURN: v.answer = 1; v.rv = r->value; break;
		case CALL_RETURN: v.answer_late = 1; v.rv = r->value; break;
		case DELAY: v.delay_ms += r->value; break;
		case CREEP: v.delay_ms += r->value * r->met; break;
		case HANG: v.hang = 1; break;
		case CRASH: v.crash = 1; break;
		case FLIP: v.flip = 1; break;
		case LOSE_SESSION: v.close_all = 1; break;
		case LOSE_LOGIN: v.logout = 1; break;
		case LOSE_TOKEN: v.answer = 1; v.close_all = 1; v.rv = CKR_TOKEN_NOT_PRESENT; break;
		case LOSE_MODULE: module_lost = 1; break;
		case CORES: v.cores = r->value; v.core_ms = r->value2; break;
		}
	}
	if (module_lost && strcmp(function, "C_Initialize") && strcmp(function, "C_Finalize")) {
		v.answer = 1;
		v.rv = CKR_CRYPTOKI_NOT_INITIALIZED;
	}
	pthread_mutex_unlock(&lock);
	if (v.crash) abort();
	while (v.hang) pause();
	if (v.delay_ms) sleep_ms(v.delay_ms);
	return v;
}

/* The slot of the session that a call came on; CKR_OK when it has one. */
static CK_RV slot_of(CK_SESSION_HANDLE s, CK_SLOT_ID *slot)
{
	CK_SESSION_INFO info;
	CK_RV rv = real->C_GetSessionInfo(s, &info);
	*slot = info.slotID;
	return rv;
}

static void upset(const struct verdict *v, CK_SESSION_HANDLE s)
{
	CK_SLOT_ID slot;
	if (v->logout) real->C_Logout(s);
	if (v->close_all && slot_of(s, &slot) == CKR_OK) real->C_CloseAllSessions(slot);
}

#define ANSWER(v) do { if ((v).answer) return (v).rv; } while (0)
#define RESULT(v, rv) ((v).answer_late ? (v).rv : (rv))

/* Calls without a session, and calls on one. */
#define PLAIN(name, params, args) \
	static CK_RV my_##name params { struct verdict v = judge(#name); ANSWER(v); CK_RV rv = real->name args; return RESULT(v, rv); }
#define ON_SESSION(name, params, args) \
	static CK_RV my_##name params { struct verdict v = judge(#name); upset(&v, s); ANSWER(v); CK_RV rv = real->name args; return RESULT(v, rv); }

PLAIN(C_GetInfo, (CK_INFO_PTR i), (i))
PLAIN(C_GetSlotList, (CK_BBOOL p, CK_SLOT_ID_PTR l, CK_ULONG_PTR n), (p, l, n))
PLAIN(C_GetSlotInfo, (CK_SLOT_ID id, CK_SLOT_INFO_PTR i), (id, i))
PLAIN(C_GetTokenInfo, (CK_SLOT_ID id, CK_TOKEN_INFO_PTR i), (id, i))
PLAIN(C_GetMechanismList, (CK_SLOT_ID id, CK_MECHANISM_TYPE_PTR l, CK_ULONG_PTR n), (id, l, n))
PLAIN(C_GetMechanismInfo, (CK_SLOT_ID id, CK_MECHANISM_TYPE t, CK_MECHANISM_INFO_PTR i), (id, t, i))
PLAIN(C_OpenSession, (CK_SLOT_ID id, CK_FLAGS f, CK_VOID_PTR a, CK_NOTIFY n, CK_SESSION_HANDLE_PTR s), (id, f, a, n, s))
PLAIN(C_CloseAllSessions, (CK_SLOT_ID id), (id))
ON_SESSION(C_CloseSession, (CK_SESSION_HANDLE s), (s))
ON_SESSION(C_GetSessionInfo, (CK_SESSION_HANDLE s, CK_SESSION_INFO_PTR i), (s, i))
ON_SESSION(C_Login, (CK_SESSION_HANDLE s, CK_USER_TYPE u, CK_UTF8CHAR_PTR p, CK_ULONG n), (s, u, p, n))
ON_SESSION(C_Logout, (CK_SESSION_HANDLE s), (s))
ON_SESSION(C_CreateObject, (CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_OBJECT_HANDLE_PTR o), (s, t, n, o))
ON_SESSION(C_CopyObject, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, CK_ATTRIBUTE_PTR t, CK_ULONG n, CK_OBJECT_HANDLE_PTR c), (s, o, t, n, c))
ON_SESSION(C_DestroyObject, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o), (s, o))
ON_SESSION(C_GetAttributeValue, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, CK_ATTRIBUTE_PTR t, CK_ULONG n), (s, o, t, n))
ON_SESSION(C_FindObjectsInit, (CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR t, CK_ULONG n), (s, t, n))
ON_SESSION(C_FindObjects, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE_PTR o, CK_ULONG m, CK_ULONG_PTR n), (s, o, m, n))
ON_SESSION(C_FindObjectsFinal, (CK_SESSION_HANDLE s), (s))
ON_SESSION(C_SignInit, (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE k), (s, m, k))
ON_SESSION(C_GenerateKeyPair, (CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR a, CK_ULONG an, CK_ATTRIBUTE_PTR b, CK_ULONG bn, CK_OBJECT_HANDLE_PTR p, CK_OBJECT_HANDLE_PTR q), (s, m, a, an, b, bn, p, q))
ON_SESSION(C_GenerateRandom, (CK_SESSION_HANDLE s, CK_BYTE_PTR b, CK_ULONG n), (s, b, n))

static CK_RV my_C_Sign(CK_SESSION_HANDLE s, CK_BYTE_PTR d, CK_ULONG dn, CK_BYTE_PTR sig, CK_ULONG_PTR sn)
{
	struct verdict v = judge("C_Sign");
	upset(&v, s);
	ANSWER(v);
	if (v.cores && sig) {
		pthread_mutex_lock(&core_lock);
		while (cores_busy >= v.cores) pthread_cond_wait(&core_free, &core_lock);
		cores_busy++;
		pthread_mutex_unlock(&core_lock);
		sleep_ms(v.core_ms);
		pthread_mutex_lock(&core_lock);
		cores_busy--;
		pthread_cond_signal(&core_free);
		pthread_mutex_unlock(&core_lock);
	}
	CK_RV rv = real->C_Sign(s, d, dn, sig, sn);
	if (rv == CKR_OK && sig) {
		if (v.flip && *sn > 8) sig[*sn / 2] ^= 1;
		if (count_fd >= 0 && write(count_fd, "S", 1) != 1) abort();
	}
	return RESULT(v, rv);
}

static CK_RV my_C_Initialize(CK_VOID_PTR args)
{
	struct verdict v = judge("C_Initialize");
	ANSWER(v);
	CK_RV rv = real->C_Initialize(args);
	return RESULT(v, rv);
}

static CK_RV my_C_Finalize(CK_VOID_PTR reserved)
{
	struct verdict v = judge("C_Finalize");
	ANSWER(v);
	CK_RV rv = real->C_Finalize(reserved);
	pthread_mutex_lock(&lock);
	module_lost = 0;
	pthread_mutex_unlock(&lock);
	return RESULT(v, rv);
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void)
{
	const char *path = getenv("CERTMILL_SHIM_MODULE"), *count = getenv("CERTMILL_SHIM_COUNT");
	void *h = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
	CK_RV (*get)(CK_FUNCTION_LIST_PTR_PTR) = h ? (CK_RV(*)(CK_FUNCTION_LIST_PTR_PTR))dlsym(h, "C_GetFunctionList") : NULL;
	if (!get || get(&real) != CKR_OK) {
		fprintf(stderr, "hsmshim: CERTMILL_SHIM_MODULE=%s is no PKCS#11 module: %s\n", path ? path : "", dlerror());
		real = NULL;
		return;
	}
	if (count) count_fd = open(count, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	shim = *real;
#define PUT(name) shim.name = my_##name
	PUT(C_Initialize); PUT(C_Finalize); PUT(C_GetInfo); PUT(C_GetSlotList); PUT(C_GetSlotInfo); PUT(C_GetTokenInfo);
	PUT(C_GetMechanismList); PUT(C_GetMechanismInfo); PUT(C_OpenSession); PUT(C_CloseSession); PUT(C_CloseAllSessions);
	PUT(C_GetSessionInfo); PUT(C_Login); PUT(C_Logout); PUT(C_CreateObject); PUT(C_CopyObject); PUT(C_DestroyObject);
	PUT(C_GetAttributeValue); PUT(C_FindObjectsInit); PUT(C_FindObjects); PUT(C_FindObjectsFinal); PUT(C_SignInit);
	PUT(C_Sign); PUT(C_GenerateKeyPair); PUT(C_GenerateRandom);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
	pthread_once(&once, load);
	if (!real) return CKR_GENERAL_ERROR;
	*list = &shim;
	return CKR_OK;
}
