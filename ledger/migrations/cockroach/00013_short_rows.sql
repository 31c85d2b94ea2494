-- Nothing to do, as in step 10.

-- +goose Up
SELECT 1;

-- +goose Down
SELECT 1;
