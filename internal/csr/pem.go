package csr

import (
	"bytes"
	"encoding/pem"

	"github.com/certmill/certmill/internal/problem"
)

const derSequence = 0x30

var pemBegin = []byte("-----BEGIN ")

// unwrap returns the DER of a body that is DER or one PEM block (RFC 7468 section 7).
func unwrap(data []byte) ([]byte, error) {
	switch {
	case len(data) > MaxBytes:
		return nil, problem.Rejected("csr", "csr_size", "the request has %d bytes; at most %d are read", len(data), MaxBytes)
	case len(data) == 0:
		return nil, problem.Rejected("csr", "csr_missing", "there is no certification request; send PKCS #10 as PEM or DER")
	case data[0] == derSequence:
		return data, nil
	}
	return unarmour(bytes.TrimSpace(data))
}

// unarmour is strict where encoding/pem is kind: Decode skips text and broken blocks
// until it finds a good one, so that the request read might not be the one seen.
func unarmour(data []byte) ([]byte, error) {
	if !bytes.HasPrefix(data, pemBegin) {
		return nil, problem.Rejected("csr", "csr_encoding", "the request is neither DER nor PEM; it must start with \"-----BEGIN CERTIFICATE REQUEST-----\"")
	}
	if bytes.Count(data, pemBegin) > 1 {
		return nil, problem.Rejected("csr", "one_csr", "the body holds more than one PEM block; send one request")
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return nil, problem.Rejected("csr", "pem", "the PEM block is damaged or cut short")
	}
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, problem.Rejected("csr", "pem_type", "the PEM block is a %.40q, not a CERTIFICATE REQUEST", block.Type)
	}
	if len(block.Headers) > 0 {
		return nil, problem.Rejected("csr", "pem_headers", "the PEM block has headers; a certification request has none")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, problem.Rejected("csr", "trailing_data", "there is text after the PEM block")
	}
	return block.Bytes, nil
}
