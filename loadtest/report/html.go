package report

func (r *Result) WriteHTML(path string) error { return nil }
