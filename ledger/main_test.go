package ledger_test

import (
	"testing"

	"github.com/certmill/certmill/internal/testenv"
	"github.com/certmill/certmill/ledger/ledgertest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestPostgreSQL(t *testing.T) { ledgertest.Run(t, testenv.PostgreSQL) }
