package testenv

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
)

func TestMain(m *testing.M) { Main(m) }

func TestEachTestHasADatabaseOfItsOwn(t *testing.T) {
	ctx := t.Context()
	for range 2 {
		conn, err := pgx.Connect(ctx, PostgreSQL(t))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.WithoutCancel(ctx))
		if _, err := conn.Exec(ctx, "CREATE TABLE only_mine (n int)"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEachTestHasARedisOfItsOwnThatStopsWithIt(t *testing.T) {
	var addr string
	for range 2 {
		t.Run("one", func(t *testing.T) {
			addr = Redis(t)
			client := redis.NewClient(&redis.Options{Addr: addr})
			defer client.Close()
			if fresh, err := client.SetNX(t.Context(), "k", "v", 0).Result(); err != nil || !fresh {
				t.Fatalf("fresh %v, error %v", fresh, err)
			}
		})
	}
	if conn, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
		conn.Close()
		t.Fatal("Redis still listens after its test")
	}
}

func TestNATSHasJetStream(t *testing.T) {
	conn, err := nats.Connect(NATS(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", []byte("x")); err != nil {
		t.Fatal(err)
	}
}

func TestSoftHSMTokensDiffer(t *testing.T) {
	tokens := SoftHSMs(t, 2)
	if tokens[0].TokenLabel == tokens[1].TokenLabel || tokens[0].PIN == tokens[1].PIN || len(tokens[0].PIN) < 16 {
		t.Fatalf("tokens are not different: %q and %q", tokens[0].TokenLabel, tokens[1].TokenLabel)
	}
}
