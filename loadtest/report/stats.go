package report

import "math"

// meanAndVariance returns the mean and the unbiased variance.
func meanAndVariance(x []float64) (mean, variance float64) {
	for _, v := range x {
		mean += v
	}
	mean /= float64(len(x))
	for _, v := range x {
		variance += (v - mean) * (v - mean)
	}
	return mean, variance / float64(len(x)-1)
}

// welch returns the difference of the means b - a with its confidence interval at
// level (0.95), without assuming equal variances (Welch 1947, with the degrees of
// freedom of Satterthwaite). Each side needs two values or more.
func welch(a, b []float64, level float64) (difference, low, high float64) {
	ma, va := meanAndVariance(a)
	mb, vb := meanAndVariance(b)
	difference = mb - ma
	sa, sb := va/float64(len(a)), vb/float64(len(b))
	if sa+sb == 0 {
		return difference, difference, difference
	}
	df := (sa + sb) * (sa + sb) / (sa*sa/float64(len(a)-1) + sb*sb/float64(len(b)-1))
	half := studentQuantile(1-(1-level)/2, df) * math.Sqrt(sa+sb)
	return difference, difference - half, difference + half
}

// studentQuantile returns the p-quantile (p > 0.5) of Student's t distribution, by
// bisection of its distribution function.
func studentQuantile(p, df float64) float64 {
	low, high := 0.0, 1.0
	for studentCDF(high, df) < p && high < 1e6 {
		high *= 2
	}
	for range 100 {
		mid := (low + high) / 2
		if studentCDF(mid, df) < p {
			low = mid
		} else {
			high = mid
		}
	}
	return (low + high) / 2
}

// studentCDF is the distribution function for t ≥ 0.
func studentCDF(t, df float64) float64 {
	return 1 - 0.5*incompleteBeta(df/(df+t*t), df/2, 0.5)
}

// incompleteBeta is the regularised incomplete beta function, by its continued
// fraction (Lentz).
func incompleteBeta(x, a, b float64) float64 {
	if x <= 0 {
		return 0
	}
	if x >= 1 {
		return 1
	}
	if x > (a+1)/(a+b+2) { // where the fraction converges fast
		return 1 - incompleteBeta(1-x, b, a)
	}
	la, _ := math.Lgamma(a)
	lb, _ := math.Lgamma(b)
	lab, _ := math.Lgamma(a + b)
	front := math.Exp(lab-la-lb+a*math.Log(x)+b*math.Log1p(-x)) / a
	const tiny = 1e-300
	f, c, d := 1.0, 1.0, 0.0
	for i := range 300 {
		m := float64(i / 2)
		var n float64
		switch {
		case i == 0:
			n = 1
		case i%2 == 0:
			n = m * (b - m) * x / ((a + 2*m - 1) * (a + 2*m))
		default:
			n = -(a + m) * (a + b + m) * x / ((a + 2*m) * (a + 2*m + 1))
		}
		if d = 1 + n*d; math.Abs(d) < tiny {
			d = tiny
		}
		d = 1 / d
		if c = 1 + n/c; math.Abs(c) < tiny {
			c = tiny
		}
		f *= c * d
		if math.Abs(1-c*d) < 1e-12 {
			break
		}
	}
	return front * (f - 1)
}
