package ocsp

import (
	"errors"
	"time"
)

// answer is one OCSPResponse with what HTTP needs to know of it.
type answer struct {
	outcome outcome
	body    []byte
	status  Status // of an authoritative answer
}

func (a *answer) authoritative() bool {
	return a.outcome == outcomeGood || a.outcome == outcomeRevoked
}

// answer finds the answer to the request der. A request for several certificates is
// answered for the first of which there is something to say: answers are signed
// beforehand, one by one, and this is the most complete one there is (RFC 9919
// section 3.2.1 asks clients for one CertID). body lies in the scratch.
func (r *Responder) answer(s *scratch, der []byte, now time.Time) answer {
	switch err := s.request.Parse(der); {
	case errors.Is(err, ErrUnsupported):
		return answer{outcome: outcomeUnauthorized, body: answerUnauthorized}
	case err != nil:
		return answer{outcome: outcomeMalformed, body: answerMalformed}
	}
	directory := r.directory.Load()
	if directory == nil { // nothing was read from Redis yet
		return answer{outcome: outcomeTryLater, body: answerTryLater}
	}
	later := false
	for i := range s.request.CertIDs {
		id := &s.request.CertIDs[i]
		n, ok := directory.find(id)
		if !ok {
			continue
		}
		rec, err := r.lookup(n, now)
		if err != nil {
			later = later || !errors.Is(err, errNone)
			continue
		}
		template := r.template(directory, rec.Signer)
		if template == nil || rec.Signatures[id.Hash] == "" {
			later = later || template == nil
			continue
		}
		body, err := template.AppendResponse(s.out[:0], id.Hash, n, &rec)
		if err != nil {
			r.deps.Log.Error("a record in Redis does not fit its signer", "serial", n, "signer", rec.Signer, "error", err)
			later = true
			continue
		}
		s.out = body
		r.metrics.age.Observe(float64(now.Unix() - rec.ProducedAt))
		a := answer{outcome: outcomeGood, body: body, status: rec.Status}
		if rec.Revoked {
			a.outcome = outcomeRevoked
		}
		return a
	}
	if later {
		return answer{outcome: outcomeTryLater, body: answerTryLater}
	}
	return answer{outcome: outcomeUnauthorized, body: answerUnauthorized}
}

// template returns the template of a signer. One that is not known is new: the record
// came before the news of it, so the shared entries are read at once.
func (r *Responder) template(d *Directory, signer int32) *Template {
	if t := d.templates[signer]; t != nil {
		return t
	}
	r.reloadOnce()
	return r.directory.Load().templates[signer]
}
