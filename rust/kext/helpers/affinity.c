// SPDX-License-Identifier: GPL-2.0
#include <linux/cpumask.h>
#include <linux/sched.h>
#include <helpers/helpers.h>

/* Has @task run on those of @cpus that are in @within, too; -EINVAL if there are none. */
static int narrow(struct task_struct *task, const struct cpumask *cpus,
		  const struct cpumask *within)
{
	cpumask_var_t both;
	int err = -EINVAL;

	if (!alloc_cpumask_var(&both, GFP_KERNEL))
		return -ENOMEM;
	if (cpumask_and(both, cpus, within))
		err = set_cpus_allowed_ptr(task, both);
	free_cpumask_var(both);
	return err;
}

void rvh_inherit_cpus(struct task_struct *of)
{
	set_cpus_allowed_ptr(current, &of->cpus_mask);
}

/* The calling thread, which is that of queue @queue: as the parameters say. */
void rvh_apply_cpus(u32 queue)
{
	cpumask_var_t cpus;

	if (!alloc_cpumask_var(&cpus, GFP_KERNEL))
		return;
	if (rvh_param_cpus(queue, cpus))
		narrow(current, cpus, &current->cpus_mask);
	free_cpumask_var(cpus);
}

/* CPUs as bits of @count words, of those that the caller may run on; all of these if @count is 0. */
int rvh_set_cpus(struct task_struct *task, const u64 *words, unsigned int count)
{
	cpumask_var_t cpus;
	unsigned int cpu;
	int err;

	if (!zalloc_cpumask_var(&cpus, GFP_KERNEL))
		return -ENOMEM;
	for_each_possible_cpu(cpu)
		if (!count || (cpu / 64 < count && words[cpu / 64] >> cpu % 64 & 1))
			cpumask_set_cpu(cpu, cpus);
	err = narrow(task, cpus, &current->cpus_mask);
	free_cpumask_var(cpus);
	return err;
}
