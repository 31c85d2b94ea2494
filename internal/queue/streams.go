package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// EnsureStreams makes SignStream and EventsStream as s says, or changes them to it.
// Any number of roles may do so at once. A stream that stands as wanted is not
// touched, so that a role without the right to change streams can start.
func EnsureStreams(ctx context.Context, js jetstream.JetStream, s Settings) error {
	for _, want := range []jetstream.StreamConfig{SignStreamConfig(s), EventsStreamConfig(s)} {
		if err := ensureStream(ctx, js, want); err != nil {
			return fmt.Errorf("stream %s: %w", want.Name, err)
		}
	}
	return nil
}

func ensureStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) error {
	return settle(ctx, func() error {
		st, err := js.Stream(ctx, want.Name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			_, err = js.CreateStream(ctx, want)
			return err
		case err != nil:
			return err
		case sameStream(st.CachedInfo().Config, want):
			return nil
		}
		_, err = js.UpdateStream(ctx, want)
		return err
	})
}

// sameStream compares what certmill sets; the server fills in the rest.
func sameStream(a, b jetstream.StreamConfig) bool {
	return slices.Equal(a.Subjects, b.Subjects) && a.Retention == b.Retention && a.Discard == b.Discard &&
		a.MaxMsgs == b.MaxMsgs && a.MaxMsgsPerSubject == b.MaxMsgsPerSubject && a.DiscardNewPerSubject == b.DiscardNewPerSubject &&
		a.MaxBytes == b.MaxBytes && a.MaxMsgSize == b.MaxMsgSize && a.MaxAge == b.MaxAge && a.Storage == b.Storage && a.Replicas == b.Replicas
}

// EnsureConsumers makes the shared pull consumers of an issuer, one for each
// priority, or changes them to what s says; any number of signers may do so at once.
func EnsureConsumers(ctx context.Context, js jetstream.JetStream, s Settings, issuer string) error {
	for _, p := range Priorities {
		want := SignConsumerConfig(issuer, p, s)
		if err := ensureConsumer(ctx, js, want); err != nil {
			return fmt.Errorf("consumer %s: %w", want.Durable, err)
		}
	}
	return nil
}

func ensureConsumer(ctx context.Context, js jetstream.JetStream, want jetstream.ConsumerConfig) error {
	return settle(ctx, func() error {
		c, err := js.Consumer(ctx, SignStream, want.Durable)
		switch {
		case errors.Is(err, jetstream.ErrConsumerNotFound):
			_, err = js.CreateConsumer(ctx, SignStream, want)
			return err
		case err != nil:
			return err
		}
		if got := c.CachedInfo().Config; got.AckWait == want.AckWait && got.MaxDeliver == want.MaxDeliver &&
			got.FilterSubject == want.FilterSubject && got.MaxAckPending == want.MaxAckPending {
			return nil
		}
		_, err = js.UpdateConsumer(ctx, SignStream, want)
		return err
	})
}

// settle repeats fn while it fails in a way that another starter, or a cluster that
// is choosing a leader, explains.
func settle(ctx context.Context, fn func() error) error {
	const pause = 100 * time.Millisecond
	for {
		err := fn()
		if err == nil || !passing(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

func passing(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) || errors.Is(err, jetstream.ErrStreamNotFound) ||
		errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrConsumerExists) ||
		errors.Is(err, jetstream.ErrConsumerDoesNotExist) || errors.Is(err, jetstream.ErrNoStreamResponse) ||
		(errors.As(err, &api) && api.Code == 503)
}
