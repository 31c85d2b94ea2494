package secrets

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// The commands of each user of Redis. What a script calls must be allowed to the user
// that runs it.
const (
	redisConnection = "+@connection -@admin -@dangerous +info +command +readonly" +
		" +cluster|slots +cluster|shards +cluster|nodes +cluster|myid"
	redisRead  = "+get +hget +hmget +hgetall +hexists +hlen +exists +xread +xinfo|stream +dbsize"
	redisWrite = "+set +hset +hsetnx +hdel +del +expire +xadd +evalsha +eval +script|load +time"
)

// redisUsers renders the users of Redis as an ACL file. Keys are readable by those who
// serve (%R), writable by presigners alone, and nobody has a command for operators:
// there is no FLUSHALL, CONFIG or DEBUG over the network.
func redisUsers(s Spec, accepted []generation) (string, error) {
	keys := s.Namespace + ":ocsp:*"
	var b strings.Builder
	b.WriteString("user default off resetchannels -@all\n")
	for _, u := range []struct{ name, rights string }{
		{"presigner", "~" + keys + " resetchannels -@all " + redisConnection + " " + redisRead + " " + redisWrite},
		// A responder writes one thing: how it is, where presigners look.
		{"responder", "%R~" + keys + " resetchannels -@all " + redisConnection + " " + redisRead + " (~" + s.Namespace + ":ocsp:presence +hset)"},
		{"viewer", "resetkeys resetchannels -@all " + redisConnection + " +dbsize"},
		// replica follows a primary; sentinel watches and promotes (Redis, "High
		// availability with Redis Sentinel", ACL).
		{"replica", "resetkeys resetchannels -@all +psync +replconf +ping"},
		{"sentinel", "resetkeys allchannels -@all +multi +slaveof +ping +exec +subscribe +config|rewrite +role +publish +info +client|setname +client|kill +script|kill"},
	} {
		var passwords []string
		for _, g := range accepted {
			secret, err := g.read(redisFile(u.name))
			if err != nil {
				return "", err
			}
			passwords = append(passwords, fmt.Sprintf("#%x", sha256.Sum256([]byte(secret))))
		}
		fmt.Fprintf(&b, "user %s on %s %s\n", u.name, strings.Join(passwords, " "), u.rights)
	}
	return b.String(), nil
}

// redisAuth renders how a replica proves itself to its primary.
func redisAuth(used generation) (string, error) {
	secret, err := used.read(redisFile("replica"))
	return "masteruser replica\nmasterauth " + secret + "\n", err
}

// redisFile is where the vault keeps a user's password.
func redisFile(user string) string { return "redis-" + user + ".password" }
