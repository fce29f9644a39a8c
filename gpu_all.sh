# build, all tests beside each other, bench, compiled row
export PYTHONUNBUFFERED=1; t0=$SECONDS; G=$(realpath ../gtest 2>/dev/null || realpath .carry/gtest)
make gpu-build GPU_CMAKE_ARGS=-DCMAKE_PREFIX_PATH=$G JOBS=16 >/tmp/build.log 2>&1 || { grep -m5 -E "error|FAILED" /tmp/build.log; tail -30 /tmp/build.log; exit 1; }
echo "built $((SECONDS-t0)) s"; rm -rf /tmp/gpupkg; cp -r build/cuda/python /tmp/gpupkg; export PYTHONPATH=/tmp/gpupkg; T=tests/gpu/python; L=/tmp/logs; rm -rf $L; mkdir -p $L
X=build/cuda/tests/gpu/turboquant_gpu_tests; D=$((SECONDS+TESTS))
run() { name=$1; shift; ( timeout $((D-SECONDS)) "$@" >$L/$name.log 2>&1; echo "$name rc $? at $((SECONDS-t0)) s" ) & }
for i in $(seq 0 7); do GTEST_TOTAL_SHARDS=8 GTEST_SHARD_INDEX=$i run cpp$i $X --gtest_brief=1 --gtest_output=json:$L/cpp$i.json; done
for s in racecheck memcheck initcheck synccheck; do run $s tools/gpu_sanitize.sh $X $s; done
py() { name=$1; shift; run $name python3 -P -m pytest -q --durations=5 --junitxml=$L/$name.xml "$@"; }
py static $T/test_static_cuda.py
py caches $T/test_cache_*.py $T/test_depth.py $T/test_sdpa_error.py
py ops $T/test_ops_cuda.py $T/test_benchmark_*cuda.py
py models $T/test_generate_models_cuda.py
py modes $T/test_generate_modes_cuda.py $T/test_model_benchmark.py
wait; tail -qn 1 $L/*.log | cut -c1-150; grep -hE "^(FAILED|ERROR)|\[  FAILED|Failure" $L/*.log | sort | uniq -c | head -30
(cd /tmp && tar czf $OUT/logs.tgz logs); mkdir -p build/gpu-bench
timeout 100 make gpu-bench JOBS=16 COMMIT=$1 >/tmp/bench.log 2>&1; echo "bench rc $? $((SECONDS-t0)) s"; cp build/gpu-bench/attend_gpu.json /tmp/bench.log $OUT/; cut -c1-150 /tmp/bench.log | grep -E "missed|append|encode|queries|G = 16|not met" | tail -40
timeout 200 python3 -P benchmarks/model_gpu.py --commit $1 --rows '^compiled step, 8 x 11,264, joined' --json $OUT/joined.json 2>&1 | grep -v -i warn | cut -c1-700; echo "joined $((SECONDS-t0)) s"
