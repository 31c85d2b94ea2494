// Package archtest holds the rules about who may import whom; its test is the check.
package archtest
