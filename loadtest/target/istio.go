package target

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
)

// istio is istiod's CreateCertificate (istio.v1.auth), and every CA that offers it,
// certmill among them. The names come from the caller's identity, not from the CSR:
// say with --expect-name what they are. Two messages of two fields do not need Istio's
// modules, so they are written by hand.
type istio struct {
	*grpcTarget
	cfg Config
}

const istioMethod = "/istio.v1.auth.IstioCertificateService/CreateCertificate"

func openIstio(c Config) (Target, error) {
	g, err := c.grpc(grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	return &istio{g, c}, err
}

func (t *istio) Do(ctx context.Context, r *Request) (Answer, error) {
	ctx, cancel := context.WithDeadline(ctx, r.Deadline)
	defer cancel()
	ctx = r.authorized(ctx)
	if t.cfg.ClusterID != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", t.cfg.ClusterID)
	}
	in := protowire.AppendTag(nil, 1, protowire.BytesType) // csr
	in = protowire.AppendBytes(in, r.CSR.PEM)
	if t.cfg.Lifetime > 0 {
		in = protowire.AppendTag(in, 3, protowire.VarintType) // validity_duration, seconds
		in = protowire.AppendVarint(in, uint64(t.cfg.Lifetime.Seconds()))
	}
	var out []byte
	if err := t.conn().Invoke(ctx, istioMethod, &in, &out); err != nil {
		return Answer{}, grpcFailure(err)
	}
	return certChain(out)
}

// certChain reads cert_chain: leaf, intermediates, and as last element the roots.
func certChain(message []byte) (Answer, error) {
	var chain []string
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return Answer{}, failure("answer", "not a CreateCertificate answer: %v", protowire.ParseError(n))
		}
		message = message[n:]
		if number == 1 && kind == protowire.BytesType {
			v, n := protowire.ConsumeString(message)
			if n < 0 {
				return Answer{}, failure("answer", "not a CreateCertificate answer: %v", protowire.ParseError(n))
			}
			chain, message = append(chain, v), message[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return Answer{}, failure("answer", "not a CreateCertificate answer: %v", protowire.ParseError(n))
		}
		message = message[n:]
	}
	if len(chain) < 2 {
		return Answer{}, failure("answer", "a chain of %d elements; Istio's agent fails on fewer than two", len(chain))
	}
	return Answer{PEM: joinPEM(chain...)}, nil
}

// rawCodec sends bytes as they are, under the name of the codec that servers have.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("the codec takes *[]byte, not %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*b)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("the codec gives *[]byte, not %T", v)
	}
	*b = data.Materialize()
	return nil
}

func (rawCodec) Name() string { return "proto" }
