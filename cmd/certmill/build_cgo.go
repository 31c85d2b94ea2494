//go:build cgo

package main

// hasPKCS11 says whether this build can load PKCS#11 modules.
const hasPKCS11 = true
