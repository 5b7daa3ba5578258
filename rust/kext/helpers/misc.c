// SPDX-License-Identifier: GPL-2.0
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/sched/vhost_task.h>
#include <helpers/helpers.h>

void rvh_module_get(void)
{
	__module_get(THIS_MODULE);
}

void rvh_module_put(void)
{
	module_put(THIS_MODULE);
}

void rvh_module_put_and_exit(void)
{
	module_put_and_kthread_exit(0);
}

void rvh_inherit_nice(struct task_struct *task)
{
	set_user_nice(task, task_nice(current));
}

void rvh_set_current_state(unsigned int state)
{
	set_current_state(state);
}

bool rvh_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

bool rvh_is_dying(void)
{
	return current->flags & PF_EXITING || fatal_signal_pending(current);
}

bool rvh_signal_pending(void)
{
	return signal_pending(current);
}

u64 rvh_local_clock(void)
{
	return local_clock();
}

bool rvh_current_is_kthread(void)
{
	return current->flags & PF_KTHREAD;
}

void rvh_cond_resched(void)
{
	cond_resched();
}

/* Whether the caller is an administrator of the network, also outside of its name spaces. */
bool rvh_net_admin(void)
{
	return capable(CAP_NET_ADMIN);
}

void rvh_give_way(void)
{
	if (need_resched() || test_thread_flag(TIF_NEED_RESCHED_LAZY))
		schedule();
}

bool rvh_need_resched(void)
{
	return need_resched();
}

/* Nobody else waits for this CPU. */
bool rvh_alone(void)
{
	return !need_resched() && single_task_running();
}

void rvh_cpu_relax(void)
{
	cpu_relax();
}

int rvh_mutex_lock_killable(struct mutex *lock)
{
	return mutex_lock_killable(lock);
}

void rvh_mutex_unlock(struct mutex *lock)
{
	mutex_unlock(lock);
}

void rvh_waitqueue_init(struct wait_queue_head *wq)
{
	init_waitqueue_head(wq);
}

void rvh_unlink_wait_entry(struct wait_queue_entry *entry)
{
	list_del_init(&entry->entry);
}

__poll_t rvh_vfs_poll(struct file *file, struct poll_table_struct *table)
{
	return vfs_poll(file, table);
}

struct vhost_task *rvh_task_create(bool (*turn)(void *), void (*killed)(void *), void *state,
				   const char *name)
{
	if (!IS_ENABLED(CONFIG_VHOST_TASK))
		return ERR_PTR(-EOPNOTSUPP);
	return vhost_task_create(turn, killed, state, name);
}

void rvh_task_start(struct vhost_task *task)
{
	if (IS_ENABLED(CONFIG_VHOST_TASK))
		vhost_task_start(task);
}

void rvh_task_stop(struct vhost_task *task)
{
	if (IS_ENABLED(CONFIG_VHOST_TASK))
		vhost_task_stop(task);
}

/* As the calling process sees it: 0 if it does not, or if the task is gone. */
pid_t rvh_task_id(struct task_struct *task)
{
	return task_pid_vnr(task);
}

/* As of the last tick or switch. */
u64 rvh_task_cpu_ns(struct task_struct *task)
{
	return READ_ONCE(task->se.sum_exec_runtime);
}
