package target

import (
	"context"
	"fmt"

	certmillv1 "github.com/certmill/certmill/proto/certmill/v1"
)

// batch is certmill's IssueBatch: cfg.Batch certificates a call.
type batch struct {
	*grpcTarget
	cfg Config
}

func openBatch(c Config) (Target, error) {
	if c.Batch < 1 || c.Batch > 256 {
		return nil, fmt.Errorf("--batch must be 1 to 256, not %d", c.Batch)
	}
	g, err := c.grpc()
	return &batch{g, c}, err
}

// Do asks for one certificate.
func (t *batch) Do(ctx context.Context, r *Request) (Answer, error) {
	results, err := t.DoBatch(ctx, []*Request{r})
	if err != nil {
		return Answer{}, err
	}
	return results[0].Answer, results[0].Err
}

// DoBatch asks for all at once.
func (t *batch) DoBatch(ctx context.Context, rs []*Request) ([]Result, error) {
	ctx, cancel := context.WithDeadline(ctx, rs[0].Deadline)
	defer cancel()
	in := &certmillv1.IssueBatchRequest{Requests: make([]*certmillv1.IssueRequest, len(rs))}
	for i, r := range rs {
		in.Requests[i] = t.cfg.issueRequest(r)
	}
	res, err := certmillv1.NewCertificateAuthorityClient(t.conn()).IssueBatch(ctx, in)
	if err != nil {
		return nil, grpcFailure(err)
	}
	if len(res.GetResults()) != len(rs) {
		return nil, failure("answer", "%d results for %d requests", len(res.GetResults()), len(rs))
	}
	out := make([]Result, len(rs))
	for i, r := range res.GetResults() {
		if r.GetRequestId() != rs[i].ID {
			out[i].Err = failure("answer", "result %d is for request %q", i, r.GetRequestId())
			continue
		}
		out[i].Answer, out[i].Err = resultOf(r)
	}
	return out, nil
}
