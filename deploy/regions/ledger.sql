-- The ledger over three regions. Run it once, as root, after `certmill ledger migrate`:
--
--   cockroach sql --certs-dir=secrets/root --host=ledger.eu.example.com -f deploy/regions/ledger.sql
--
-- Every node is started with --locality=region=eu,zone=a and so on; the names below are
-- those regions.

ALTER DATABASE certmill SET PRIMARY REGION "eu";
ALTER DATABASE certmill ADD REGION "us";
ALTER DATABASE certmill ADD REGION "ap";

-- Five replicas, in every region, so that a majority stands when a region is lost. A
-- commit waits for a second region.
ALTER DATABASE certmill SURVIVE REGION FAILURE;

-- Tables stay REGIONAL BY TABLE IN PRIMARY REGION, which is the default: a request's key
-- is unique in the whole world, so a row by region would have to ask every region too.
-- What is read at each request or start and written by ceremonies alone is read locally
-- everywhere; a write of it takes up to a second.
ALTER TABLE issuers SET LOCALITY GLOBAL;
