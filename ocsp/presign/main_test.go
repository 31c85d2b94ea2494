package presign

import (
	"testing"

	"github.com/certmill/certmill/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
